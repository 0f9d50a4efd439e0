"""The making of a dataset's shards: each atomic, the whole resumable, the same every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rundir import OptsweepError, UserError
from rundir.files import replacing
from trainer.data.headers import Header, check_shard, check_tokens
from trainer.data.manifest import (
    MANIFEST_FILE,
    TRAINING,
    VALIDATION,
    LaterFormat,
    Manifest,
    Position,
    Shard,
)
from trainer.data.shards import write_shard
from trainer.data.tokenizers import END_OF_TEXT
from trainer.data.tokenizing import Tokenized


class TokenStream:
    """Tokens one after the other, as many at a time as are wanted."""

    def __init__(self, parts: Iterator[Tokenized], skip: int) -> None:
        """Leave out the first ``skip`` tokens."""
        self._parts, self._part, self._at = parts, next(parts, None), skip
        self.position = Position()
        """Where the next token stands; behind the last one when there is none."""
        self._settle()

    @property
    def is_over(self) -> bool:
        """Whether no token follows."""
        return self._part is None

    def take(self, count: int) -> Iterator[NDArray[np.uint16]]:
        """Yield the next ``count`` tokens in pieces; fewer where the stream ends."""
        while count > 0 and self._part is not None:
            piece = self._part.tokens[self._at : self._at + count]
            yield piece
            count -= len(piece)
            self._at += len(piece)
            self._settle()

    def _settle(self) -> None:
        """Go on to the part that holds the next token."""
        while self._part is not None:
            self.position = Position(self._part.state, self._at)
            if self._at < len(self._part.tokens):
                return
            self._at -= len(self._part.tokens)
            self._part = next(self._parts, None)


@dataclass
class Preparation:
    """A dataset in the making. Nobody else may work in the directory."""

    directory: Path
    manifest: Manifest
    stream_from: Callable[[Position], Iterator[Tokenized]]
    """Opens the stream of documents at a position."""
    tell: Callable[[Shard | None, int], None] = field(default=lambda _shard, _tokens: None)
    """Told of tokens as they come, with None, and of each shard that is whole."""

    def make(self, *, verify: bool = False) -> Manifest:
        """Make what is missing or damaged, and return the manifest of it all.

        Args:
            verify: read every token of the shards that are there, not their headers only.

        Raises:
            LaterFormat: a shard is of a later version; it stays.
            UserError: the source holds no tokens for training.
            OptsweepError: it is not what it was when a damaged shard was first made.
        """
        self._clear_torn_files()
        self._mend(check_tokens if verify else check_shard)
        if not self.manifest.complete:
            self._go_on()
        return self.manifest

    def _mend(self, check: Callable[[Path, Manifest, Shard], object]) -> None:
        """Make the listed shards that are missing or damaged again, exactly as they were."""
        before = Position()
        for shard in self.manifest.shards:
            try:
                check(self.directory, self.manifest, shard)
            except LaterFormat:
                raise
            except UserError:
                stream = self._open(before)
                again = self._write(shard.file, shard.split, shard.tokens, stream)
                if replace(again, end=shard.end) != shard:
                    raise OptsweepError(
                        f"{self.directory / shard.file} comes out another than it was: its source "
                        f"has changed; delete {self.directory} and prepare the dataset anew"
                    ) from None
            before = shard.end

    def _go_on(self) -> None:
        """Add the shards that are not there yet."""
        made = self.manifest.shards
        stream = self._open(made[-1].end if made else Position())
        for split, size in list(self._sizes())[len(made) :]:
            if stream.is_over:
                break
            name = f"{split}_{len(self.manifest.shards):06d}.bin"
            shard = self._write(name, split, size, stream)
            self._record(replace(self.manifest, shards=(*self.manifest.shards, shard)))
            self.tell(shard, 0)
        if self.manifest.total(TRAINING) == 0:
            self._give_up()
        self._record(replace(self.manifest, complete=True))

    def _sizes(self) -> Iterator[tuple[str, int]]:
        """Yield split and tokens of every shard, if the source holds enough."""
        wanted = {VALIDATION: self.manifest.val_tokens, TRAINING: self.manifest.tokens}
        for split, tokens in wanted.items():
            for done in range(0, tokens, self.manifest.shard_tokens):
                yield split, min(self.manifest.shard_tokens, tokens - done)

    def _open(self, position: Position) -> TokenStream:
        return TokenStream(self.stream_from(position), position.tokens)

    def _write(self, name: str, split: str, tokens: int, stream: TokenStream) -> Shard:
        documents = 0

        def counted() -> Iterator[NDArray[Any]]:
            nonlocal documents
            for piece in stream.take(tokens):
                documents += int(np.count_nonzero(piece == END_OF_TEXT))
                self.tell(None, len(piece))
                yield piece

        with replacing(self.directory / name) as file:
            header: Header = write_shard(file, counted(), self.manifest.tokenizer_sha256)
        return Shard(name, split, header.tokens, header.sha256, documents, stream.position)

    def _record(self, manifest: Manifest) -> None:
        self.manifest = manifest
        manifest.write(self.directory)

    def _give_up(self) -> None:
        """Refuse a source that is too small, and leave nothing of it."""
        held = self.manifest.total(VALIDATION)
        for shard in self.manifest.shards:
            (self.directory / shard.file).unlink(missing_ok=True)
        (self.directory / MANIFEST_FILE).unlink(missing_ok=True)
        raise UserError(
            f"--val-tokens {self.manifest.val_tokens}: must be less than {held}, the tokens that "
            "the source holds"
        )

    def _clear_torn_files(self) -> None:
        """Remove what a kill in the middle of writing has left."""
        for pattern in (".val_*.bin.*", ".train_*.bin.*", f".{MANIFEST_FILE}.*"):
            for torn in self.directory.glob(pattern):
                torn.unlink()
