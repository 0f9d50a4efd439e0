"""Token shards on disk: a header of 256 bytes, then token ids, uint16, little-endian.

Shapes: B windows, L tokens of a window.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rundir import UserError
from trainer.data.catalogue import command
from trainer.data.manifest import MANIFEST_FILE, VERSION, Manifest, Shard

MAGIC = b"optsweep"
_FIELDS = struct.Struct("<8sIIQ32s32s")
"""Magic, version, bytes a token, tokens, hash of the tokenizer, hash of the tokens."""
HEADER_BYTES = 256
"""A multiple of a cache line, with room for what later versions may add."""
TOKEN = np.dtype("<u2")


@dataclass(frozen=True)
class Header:
    """What a shard says of itself."""

    tokens: int
    tokenizer_sha256: str
    sha256: str
    """Of the tokens as they lie in the file."""
    version: int = VERSION

    def pack(self) -> bytes:
        """Return the bytes that a shard begins with."""
        hashes = bytes.fromhex(self.tokenizer_sha256), bytes.fromhex(self.sha256)
        fields = _FIELDS.pack(MAGIC, self.version, TOKEN.itemsize, self.tokens, *hashes)
        return fields.ljust(HEADER_BYTES, b"\0")

    @classmethod
    def of(cls, path: Path) -> Header:
        """Read the header of a whole shard.

        Raises:
            UserError: the file is no shard, of a later version, or truncated.
        """
        try:
            with path.open("rb") as file:
                raw = file.read(HEADER_BYTES)
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        if not raw.startswith(MAGIC):
            raise UserError(f"{path} is no shard of tokens: its magic is {raw[:8]!r}")
        if len(raw) < HEADER_BYTES:
            raise UserError(f"{path} is truncated: it has {len(raw)} bytes, less than a header")
        _, version, width, tokens, tokenizer, digest = _FIELDS.unpack_from(raw)
        if version != VERSION:
            raise UserError(f"{path}: version = {version}; must be {VERSION}; update optsweep")
        if width != TOKEN.itemsize or size != HEADER_BYTES + width * tokens:
            raise UserError(
                f"{path} is truncated: it has {size} bytes; must be "
                f"{HEADER_BYTES + TOKEN.itemsize * tokens}, for {tokens} tokens"
            )
        return cls(tokens, tokenizer.hex(), digest.hex(), version)


def check_shard(directory: Path, manifest: Manifest, shard: Shard) -> Path:
    """Return the path of a shard whose header is what the manifest says; reads no tokens.

    Raises:
        UserError: it is not.
    """
    path = directory / shard.file
    header = Header.of(path)
    if header.tokenizer_sha256 != manifest.tokenizer_sha256:
        raise UserError(
            f"{path}: its tokens are of tokenizer {header.tokenizer_sha256[:8]}; must be "
            f"{manifest.tokenizer} ({manifest.tokenizer_sha256[:8]})"
        )
    if (header.tokens, header.sha256) != (shard.tokens, shard.sha256):
        raise UserError(
            f"{path} is another shard than {MANIFEST_FILE} names: {header.tokens} tokens of hash "
            f"{header.sha256[:8]}; must be {shard.tokens} of {shard.sha256[:8]}"
        )
    return path


def check_tokens(directory: Path, manifest: Manifest, shard: Shard) -> None:
    """As :func:`check_shard`, and read every token for its hash: seconds a gigabyte.

    Raises:
        UserError: it is not what the manifest says.
    """
    path = check_shard(directory, manifest, shard)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != shard.sha256:
        raise UserError(f"{path} is damaged: its tokens have another hash")


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
        try:
            paths = [check_shard(directory, manifest, shard) for shard in shards]
        except UserError as error:
            raise UserError(f"{error}; {self._again} makes it again") from None
        self._paths = paths
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
