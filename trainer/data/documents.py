"""Documents as a stream, by Hugging Face ``datasets``: from its hub, or from files here."""

from __future__ import annotations

import glob
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rundir import OptsweepError, UserError
from rundir.errors import brings
from trainer.data.catalogue import PREPARED, HubDataset

KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text"}
"""What ``datasets`` reads a file with, by its ending; .gz or .zst may follow."""
_PACKED = {".gz": None, ".zst": "zstandard"}
"""The package that unpacks it."""

BATCH = 128
"""Documents that are tokenized together."""

Source = Mapping[str, Any]
"""Where documents come from, as manifests record it."""

Documents = tuple[Mapping[str, Any], list[str]]
"""A state of the stream, and documents that follow it."""


def files_source(patterns: Sequence[str], column: str) -> Source:
    """Return the source that local files are.

    Args:
        patterns: files or globs.
        column: of Parquet and JSON, which holds the text.

    Raises:
        UserError: there is no such file, or they are not of one kind that can be read.
    """
    files = [file for pattern in patterns for file in _matches(pattern)]
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise UserError(f"--source has files of kinds {', '.join(sorted(kinds))}; must be of one")
    kind = kinds.pop()
    return {
        "files": [[os.path.abspath(file), *_state_of(file)] for file in files],
        "kind": kind,
        "column": "text" if kind == "text" else column,
    }


def check_files(source: Source) -> None:
    """Refuse files that are not what they were when the preparation was begun.

    Raises:
        UserError: one is gone, has another size, or was written since.
    """
    for file, size, *written in source.get("files", ()):  # early manifests have no time
        if not os.path.exists(file):
            raise UserError(
                f"--source {file}: is gone; must have {size} bytes, as at the beginning"
            )
        found, *since = _state_of(file)
        if found != size:
            must = f"must have {size}, as at the beginning"
            raise UserError(f"--source {file}: has {found} bytes; {must}")
        if written and since != written:
            must = "must be as it was at the beginning"
            raise UserError(f"--source {file}: was written since the preparation began; {must}")


def names_of(source: Source) -> dict[str, Any]:
    """Return the source without the state that its files were in."""
    return {**source, "files": [file for file, *_ in source.get("files", ())]}


def _state_of(file: str) -> tuple[int, int]:
    """Return what another file in its place would differ in: bytes, and when it was written."""
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def hub_source(name: str) -> Source:
    """Return the source that a known dataset has on the hub, at its present revision.

    Raises:
        UserError: the hub can't be reached, or a package is missing.
    """
    known = PREPARED[name]
    _need("datasets", known.needs)
    from huggingface_hub import HfApi

    try:
        revision = HfApi().dataset_info(known.repo, timeout=20).sha
    except Exception as error:  # the network's, the hub's and the proxy's errors share no base
        raise _unreachable(known, error) from error
    return {
        "repo": known.repo,
        "config": known.config,
        "revision": revision,
        "column": "text",
    }


def told(source: Source) -> str:
    """Return the source in a few words."""
    if "repo" in source:
        config = f" {source['config']}" if source["config"] else ""
        return f"{source['repo']}{config} at {str(source['revision'])[:8]}"
    first, *more = (file for file, *_ in source["files"])
    return f"{first} and {len(more)} more" if more else str(first)


def documents(source: Source, state: Mapping[str, Any] | None) -> Iterator[Documents]:
    """Yield the source's documents from a state of the stream on, BATCH at a time.

    Memory is that of what ``datasets`` reads at once, a row group or 10 MB.

    Raises:
        UserError: nothing can be read, or a document has no text.
        OptsweepError: reading fails later on.
    """
    read = 0
    try:
        stream = _stream(source)
        if state is not None:
            stream.load_state_dict(state)
        examples = iter(stream)
        while True:
            before = stream.state_dict()
            texts = [example[source["column"]] for example in islice(examples, BATCH)]
            if not texts:
                return
            _check(texts, source, read)
            yield before, texts
            read += len(texts)
    except OptsweepError:
        raise
    except Exception as error:  # datasets passes on errors of Arrow, JSON, the network, the disk
        raise _unreadable(source, read, error) from error


def _stream(source: Source) -> Any:
    _need("datasets")
    import datasets

    for noisy in ("datasets", "huggingface_hub"):  # a line a retry, and a second one an error
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    if "repo" in source:
        place = {"path": source["repo"], "name": source["config"], "revision": source["revision"]}
    else:
        place = {"path": source["kind"], "data_files": [file for file, *_ in source["files"]]}
        if source["kind"] == "text":
            place["sample_by"] = "document"
    stream = datasets.load_dataset(**place, split="train", streaming=True)
    columns = stream.column_names or [source["column"]]
    if source["column"] not in columns:
        raise UserError(
            f"--column {source['column']}: must be a column of {told(source)}: {', '.join(columns)}"
        )
    return stream.select_columns([source["column"]])


def _check(texts: list[Any], source: Source, read: int) -> None:
    for number, text in enumerate(texts, start=read + 1):
        if not isinstance(text, str):
            raise UserError(
                f"{told(source)}: {source['column']} of document {number} is {text!r}; "
                "must be a text"
            )


def _matches(pattern: str) -> list[str]:
    path = Path(pattern).expanduser()
    found = [str(path)] if path.exists() else sorted(glob.glob(str(path), recursive=True))
    files = [file for file in found if Path(file).is_file()]
    if not files:
        raise UserError(f"--source {pattern}: must be a file, or a glob that matches some")
    return files


def _kind(file: str) -> str:
    *rest, last = ["", *Path(file).suffixes]
    if last in _PACKED:
        _need(_PACKED[last])
        last = rest[-1] if rest else ""
    if last not in KINDS:
        legal = ", ".join(KINDS)
        raise UserError(f"--source {file}: must end in {legal}, or one of them and .gz or .zst")
    return KINDS[last]


def _need(*packages: str | None) -> None:
    for package in packages:
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"preparing data needs {package}: {brings('data')}")


def _unreachable(known: HubDataset, error: Exception) -> UserError:
    return UserError(
        f"{known.repo} can't be had from the Hugging Face hub here ({type(error).__name__}); where "
        "the network allows it, try again, or download its files and add --source FILES "
        "(.parquet, .jsonl or .txt)"
    )


def _unreadable(source: Source, read: int, error: Exception) -> OptsweepError:
    cause = error.__cause__ or error
    why = next(iter(str(cause).splitlines()), "it holds no document")
    reason = why if isinstance(cause, StopIteration) else f"{type(cause).__name__}: {why}"
    if read:
        return OptsweepError(f"{told(source)} broke off after {read} documents: {reason}")
    return UserError(f"{told(source)} can't be read: {reason}")
