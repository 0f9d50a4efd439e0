"""The record of a prepared dataset: its shards, and how the rest of them is made.

``manifest.json`` lies beside the shards and is replaced after each one, so that an interrupted
preparation goes on where the last whole shard ends. Whoever launches runs reads nothing else of
the data: loads neither torch nor numpy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rundir import UserError, read_json, write_json
from trainer.data.catalogue import command

MANIFEST_FILE = "manifest.json"

VERSION = 1
"""Of the format of manifest and shards. A reader refuses higher ones."""

VALIDATION, TRAINING = "val", "train"
"""The splits; a shard's name begins with its own."""


class LaterFormat(UserError):
    """A later optsweep wrote the file: it is whole, and nothing here can make it again."""


def refuse_later(path: Path, version: object) -> None:
    """Refuse a file whose format this optsweep does not know yet.

    Raises:
        LaterFormat: so.
    """
    if isinstance(version, int) and version > VERSION:
        raise LaterFormat(
            f"{path} has format {version}, of a later optsweep; this one reads format {VERSION}: "
            "it takes a newer optsweep"
        )


@dataclass(frozen=True)
class Position:
    """A place in the stream of documents."""

    state: Mapping[str, Any] | None = None
    """Of the ``datasets`` stream, as it gave it; None at the beginning."""
    tokens: int = 0
    """Of the documents that follow the state, how many tokens come before the position."""


@dataclass(frozen=True)
class Shard:
    """A file of tokens."""

    file: str
    """Its name beside the manifest."""
    split: str
    """``val`` or ``train``."""
    tokens: int
    sha256: str
    """Of the tokens as they lie in the file."""
    documents: int
    """Documents that begin in it."""
    end: Position
    """What comes after it."""


@dataclass(frozen=True)
class Manifest:
    """What a preparation makes, and the shards that it has made."""

    dataset: str
    tokenizer: str
    tokenizer_sha256: str
    """See :data:`trainer.data.sources.TOKENIZER_HASHES`."""
    vocab_size: int
    source: Mapping[str, Any]
    """Where the documents come from: the hub's repository and revision, or files."""
    tokens: int
    """Tokens wanted for training."""
    val_tokens: int
    """Tokens for validation."""
    shard_tokens: int
    """Tokens of a shard; the last one of a split may hold fewer."""
    shards: tuple[Shard, ...] = ()
    complete: bool = False
    """Whether there is nothing to add."""

    def total(self, split: str) -> int:
        """Tokens of a split."""
        return sum(shard.tokens for shard in self.shards if shard.split == split)

    def of(self, split: str) -> tuple[Shard, ...]:
        """Return the shards of a split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def write(self, directory: Path) -> None:
        """Replace the manifest in ``directory``."""
        write_json(directory / MANIFEST_FILE, {"version": VERSION, **asdict(self)})

    @classmethod
    def read(cls, directory: Path) -> Manifest | None:
        """Return the manifest in ``directory``; None if there is none.

        Costs one ``stat`` when it was read before.

        Raises:
            UserError: it is damaged, or of a later version.
        """
        path = directory / MANIFEST_FILE
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _read(path, found.st_mtime_ns, found.st_size, found.st_ino)


@lru_cache(maxsize=16)
def _read(path: Path, *_: int) -> Manifest:
    raw = read_json(path)
    if raw is None:
        raise UserError(f"{path} is damaged: it is no JSON object; {_ANEW}")
    version = raw.pop("version", None)
    refuse_later(path, version)
    if version != VERSION:
        raise UserError(f"{path} is damaged: its format is {version!r}; {_ANEW}")
    try:
        shards = tuple(
            Shard(**{**shard, "end": Position(**shard["end"])}) for shard in raw.pop("shards")
        )
        return Manifest(**raw, shards=shards)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}; {_ANEW}") from None


_ANEW = "delete its directory and prepare the dataset anew"


def prepared(name: str, directory: Path) -> Manifest:
    """Return the manifest of a dataset that is ready to train on; reads no shard.

    Raises:
        UserError: it is not, or ``directory`` holds another one.
    """
    manifest = Manifest.read(directory)
    if manifest is None:
        raise UserError(
            f"data.dataset.name = {name!r}; its shards are not in {directory}; "
            f"make them with: {command(name, directory)}"
        )
    if manifest.dataset != name:
        raise UserError(
            f"data.dataset.name = {name!r}; must be {manifest.dataset}, which {directory} holds"
        )
    if not manifest.complete:
        have = manifest.total(VALIDATION) + manifest.total(TRAINING)
        wanted = manifest.tokens + manifest.val_tokens
        raise UserError(
            f"data.dataset.name = {name!r}; {directory} holds {have:,} of {wanted:,} tokens; "
            f"go on with: {command(name, directory)}"
        )
    return manifest
