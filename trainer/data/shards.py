"""Token shards on disk: a header of 256 bytes, then token ids, uint16, little-endian.

Shapes: B windows, L tokens of a window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rundir import UserError
from trainer.data.catalogue import command
from trainer.data.headers import HEADER_BYTES, Header, whole_shards
from trainer.data.manifest import Manifest

TOKEN = np.dtype("<u2")


def write_shard(file: IO[bytes], parts: Iterable[NDArray[Any]], tokenizer_sha256: str) -> Header:
    """Write a shard of the tokens that ``parts`` yields, each uint16 (N,), and return its header.

    Memory is that of one part; the header comes last, over the room left for it.
    """
    digest, tokens = hashlib.sha256(), 0
    file.write(b"\0" * HEADER_BYTES)
    for part in parts:
        raw = np.ascontiguousarray(part, dtype=TOKEN).data
        digest.update(raw)
        file.write(raw)
        tokens += len(part)
    header = Header(tokens, tokenizer_sha256, digest.hexdigest())
    file.seek(0)
    file.write(header.pack())
    return header


class TokenShards:
    """The tokens of one split as if in one array, memory-mapped; opening costs one page a shard.

    A window may reach over the end of a shard into the next: what is read does not depend on how
    the tokens were cut.
    """

    def __init__(self, directory: Path, manifest: Manifest, split: str) -> None:
        """Map the shards of a split.

        Raises:
            UserError: one is missing or not what the manifest says.
        """
        shards = manifest.of(split)
        self._again = command(manifest.dataset, directory)
        self._vocabulary = manifest.vocab_size
        paths = self._paths = whole_shards(directory, manifest, split)
        # Plain views: slicing a memmap itself costs 3 µs, five times as much as copying a window.
        self._parts = [
            np.memmap(path, TOKEN, "r", HEADER_BYTES, (shard.tokens,)).view(np.ndarray)
            for path, shard in zip(paths, shards, strict=True)
        ]
        self._ends = np.cumsum([shard.tokens for shard in shards])
        self._length = manifest.total(split)

    def __len__(self) -> int:
        return self._length

    def read(self, starts: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copy windows straight from the mapped files, each of as many tokens as fit.

        Args:
            starts: (B,), each at most ``len(self)`` - L.
            out: (B, L), of any integer type that holds the tokens.

        Raises:
            UserError: a token is none of the vocabulary, which a header does not tell: the file was
                damaged since.
        """
        homes = np.searchsorted(self._ends, starts, side="right")
        for row, start, home in zip(out, starts.tolist(), homes.tolist(), strict=True):
            self._copy(start, home, row)
        if out.size and out.max() >= self._vocabulary:
            home = int(homes[int((out >= self._vocabulary).any(axis=1).argmax())])
            raise UserError(
                f"{self._paths[home]}, or the shard that follows it, is damaged: it holds a token "
                f"{out.max()}; must be below {self._vocabulary}; {self._again} --verify mends it"
            )

    def _copy(self, start: int, home: int, row: NDArray[Any]) -> None:
        filled = 0
        while filled < len(row):
            part = self._parts[home]
            at = start + filled - (int(self._ends[home]) - len(part))
            piece = part[at : at + len(row) - filled]
            row[filled : filled + len(piece)] = piece
            filled, home = filled + len(piece), home + 1
