"""``python -m trainer.prepare NAME``: a dataset of the Hugging Face hub to shards of tokens.

Interrupted anywhere, the same command goes on after the last whole shard.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from rundir import IllegalValue, UserError, exit_code_of, require, tell, unknown
from rundir.commandline import Parser, options_of
from rundir.files import locked
from trainer.data.catalogue import HOME_VARIABLE, PREPARED, command, shards_of
from trainer.data.manifest import TRAINING, VALIDATION, Manifest, Position, Shard
from trainer.data.sources import DATASETS, TOKENIZER_HASHES, TOKENIZERS

SHARD_TOKENS = 10**8
"""As GPT-opt's: 200 MB a shard."""
LOCK_FILE = ".lock"
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare or list; return the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    return exit_code_of(lambda: _run(options_of(_parser(), words)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m trainer.prepare",
        description="A dataset of the Hugging Face hub, or files like its, to shards of GPT-2's "
        "tokens. Interrupted, the same command goes on after the last whole shard.",
    )
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help=", ".join(PREPARED))
    add("--out", type=Path, metavar="DIR", help=f"default: NAME below ${HOME_VARIABLE} or data")
    add("--workers", type=int, metavar="N", help="tokenizing processes; default: one a core")
    add("--tokens", type=int, metavar="N", help="for training; default: as many as NAME says")
    add("--val-tokens", type=int, metavar="N", help="for validation: those that come first")
    add("--shard-tokens", type=int, metavar="N", help=f"of a file; default: {SHARD_TOKENS:,}")
    kinds = "files here instead of the hub's: .parquet, .jsonl or .txt, also with .gz or .zst"
    add("--source", nargs="+", metavar="FILE", help=kinds)
    add("--column", metavar="NAME", help="that holds the text in --source; default: text")
    add("--vocab-bpe", metavar="FILE", help="GPT-2's vocab.bpe, where it can't be downloaded")
    add("--verify", action="store_true", help="read the shards that are there; mend damaged ones")
    add("--list", action="store_true", help="what is known, what is prepared, and where")
    add("--json", action="store_true", help="with --list: as JSON")
    return parser


def _run(options: argparse.Namespace) -> int:
    return _list(options) if options.list else _prepare(options)


def _prepare(options: argparse.Namespace) -> int:
    name = _checked_name(options.name)
    for option in ("tokens", "val_tokens", "shard_tokens", "workers"):
        value, least = getattr(options, option), 0 if option == "workers" else 1
        require(value is None or value >= least, _flag(option), value, f"at least {least}")
    directory = options.out or shards_of(name)
    # Whatever is wrong with the input is found before anything is written.
    wanted = Manifest.read(directory) or _new(name, directory, options)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {directory}: can't be made: {error.strerror}") from None
    with locked(directory / LOCK_FILE) as owner:
        if owner is not None:
            raise UserError(f"{directory} is being prepared by {owner}")
        manifest = Manifest.read(directory) or wanted
        _refuse_other(name, directory, manifest, options)
        try:
            with _interruptible(name, directory):
                return _make(directory, manifest, options)
        finally:
            _leave_nothing_empty(directory)


def _leave_nothing_empty(directory: Path) -> None:
    """Remove the directory again where it holds no shard."""
    if Manifest.read(directory) is None:
        (directory / LOCK_FILE).unlink()
        with suppress(OSError):  # it holds something else
            directory.rmdir()


def _checked_name(name: str | None) -> str:
    if name in PREPARED:
        return name
    if name is None:
        raise UserError(f"NAME is missing; must be one of: {', '.join(PREPARED)}; or --list")
    if name in DATASETS:
        raise UserError(f"{name} needs no preparation: python launch.py data={name}")
    raise unknown("dataset", name, PREPARED)


def _new(name: str, directory: Path, options: argparse.Namespace) -> Manifest:
    """Return the manifest of what is to be made, as yet without a shard."""
    from trainer.data.documents import files_source, hub_source

    if options.column is not None and options.source is None:
        raise UserError(f"--column {options.column}: only with --source")
    source = (
        files_source(options.source, options.column or "text")
        if options.source
        else hub_source(name)
    )
    known = PREPARED[name]
    manifest = Manifest(
        dataset=name,
        tokenizer="gpt2",
        tokenizer_sha256=TOKENIZER_HASHES["gpt2"],
        vocab_size=TOKENIZERS["gpt2"],
        source=source,
        tokens=options.tokens or known.tokens,
        val_tokens=options.val_tokens or known.val_tokens,
        shard_tokens=options.shard_tokens or SHARD_TOKENS,
    )
    if options.source is None:
        _require_room(directory, manifest)
    return manifest


def _require_room(directory: Path, manifest: Manifest) -> None:
    here = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    free, needed = shutil.disk_usage(here).free, 2 * (manifest.tokens + manifest.val_tokens)
    if free < needed:
        raise UserError(
            f"{directory} has {_gigabytes(free)} free; must have {_gigabytes(needed)}; give "
            f"another --out, or fewer --tokens"
        )


def _refuse_other(
    name: str, directory: Path, manifest: Manifest, options: argparse.Namespace
) -> None:
    """Refuse to go on with shards that were begun otherwise than it is asked now."""
    from trainer.data.documents import check_files, files_source, names_of

    asked: dict[str, Any] = {"dataset": name}
    asked |= {key: getattr(options, key) for key in ("tokens", "val_tokens", "shard_tokens")}
    for key, value in asked.items():
        ours = getattr(manifest, key)
        if value not in {None, ours}:
            must = f"{ours}, with which {directory} was begun; or give another --out"
            raise IllegalValue("NAME" if key == "dataset" else _flag(key), value, must)
    if options.source is not None:
        column = options.column or manifest.source["column"]
        if names_of(files_source(options.source, column)) != names_of(manifest.source):
            raise UserError(
                f"--source: must be the files with which {directory} was begun; or give another "
                "--out"
            )
        check_files(manifest.source)


def _make(directory: Path, manifest: Manifest, options: argparse.Namespace) -> int:
    from trainer.data.documents import check_files, documents, told
    from trainer.data.preparation import Preparation
    from trainer.data.tokenizing import Tokenized, tokenized

    workers = len(os.sched_getaffinity(0)) if options.workers is None else options.workers

    def stream_from(position: Position) -> Iterator[Tokenized]:
        check_files(manifest.source)
        return tokenized(documents(manifest.source, position.state), workers, options.vocab_bpe)

    with _Meter(manifest, told(manifest.source)) as meter:
        preparation = Preparation(directory, manifest, stream_from, meter.tell)
        made = preparation.make(verify=options.verify)
    training, validation = made.total(TRAINING), made.total(VALIDATION)
    if training < made.tokens:
        tell(f"the source holds fewer than the {made.tokens:,} training tokens asked for")
    sys.stdout.write(
        f"{made.dataset}: {training:,} tokens for training, {validation:,} for validation, in "
        f"{len(made.shards)} shards, {_gigabytes(2 * (training + validation))}, in {directory}\n"
    )
    return 0


@contextmanager
def _interruptible(name: str, directory: Path) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end the block in one line."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        manifest = Manifest.read(directory)
        whole = len(manifest.shards) if manifest else 0
        tell(
            f"interrupted; {whole} shards are whole; {command(name, directory)} goes on after them"
        )
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


class _Meter:
    """Progress on stderr: a bar with tokens/s and the time left, or a line a shard."""

    def __init__(self, manifest: Manifest, source: str) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn(manifest.dataset),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]} tokens/s"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._source, self._has_bar = source, console.is_terminal
        had = sum(shard.tokens for shard in manifest.shards)
        self._task = self._bar.add_task(
            "", total=manifest.tokens + manifest.val_tokens, completed=had, speed="0"
        )
        self._tokens, self._began = 0, 0.0

    def __enter__(self) -> _Meter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tell(self, shard: Shard | None, tokens: int) -> None:
        """Count tokens, or tell of a whole shard."""
        self._began = self._began or time.perf_counter()
        self._tokens += tokens
        speed = f"{self._tokens / (time.perf_counter() - self._began + 1e-3):,.0f}"
        self._bar.update(self._task, advance=tokens, speed=speed)
        if shard is not None and not self._has_bar:
            tell(f"{shard.file}: {shard.tokens:,} tokens of {self._source}, {speed} tokens/s")


def _list(options: argparse.Namespace) -> int:
    rows = [_row(name, options.out) for name in PREPARED]
    if options.json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return 0
    table = Table("dataset", "source", "tokens", "state", "on disk", "where", box=SIMPLE_HEAD)
    table.add_row("shakespeare", "part of the package", "1,188,824", "needs no preparation")
    table.add_row("text", "your files", "", "needs no preparation")
    for row in rows:
        wanted = f"{row['tokens']:,}"
        place = [_gigabytes(row["bytes"]), row["directory"]] if row["bytes"] else []
        table.add_row(row["dataset"], row["source"], wanted, row["state"], *place)
    console = Console()
    console.width = max(console.width, 140)
    console.print(table)
    return 0


def _row(name: str, out: Path | None) -> dict[str, Any]:
    from trainer.data.documents import told

    directory, known = out or shards_of(name), PREPARED[name]
    manifest = Manifest.read(directory)
    if manifest is None or manifest.dataset != name:
        source = f"{known.repo} {known.config or ''}".strip()
        tokens = known.tokens + known.val_tokens
        unmade: dict[str, Any] = {"tokens": tokens, "bytes": 0, "directory": str(directory)}
        return {"dataset": name, "source": source, "state": "not prepared", **unmade}
    have = manifest.total(TRAINING) + manifest.total(VALIDATION)
    wanted = manifest.tokens + manifest.val_tokens
    return {
        "dataset": name,
        "source": told(manifest.source),
        "state": "prepared" if manifest.complete else f"{have / wanted:.0%} prepared",
        "tokens": have if manifest.complete else wanted,
        "bytes": 2 * have,
        "directory": str(directory),
    }


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"


if __name__ == "__main__":
    sys.exit(main())
