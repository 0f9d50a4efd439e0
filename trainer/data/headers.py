"""What a shard of tokens says of itself: a header of 256 bytes. Loads neither torch nor numpy."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rundir import UserError
from trainer.data.catalogue import command
from trainer.data.manifest import (
    MANIFEST_FILE,
    TRAINING,
    VALIDATION,
    VERSION,
    LaterFormat,
    Manifest,
    Shard,
    prepared,
    refuse_later,
)

MAGIC = b"optsweep"
_FIELDS = struct.Struct("<8sIIQ32s32s")
"""Magic, version, bytes a token, tokens, hash of the tokenizer, hash of the tokens."""
HEADER_BYTES = 256
"""A multiple of a cache line, with room for what later versions may add."""
TOKEN_BYTES = 2


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
        fields = _FIELDS.pack(MAGIC, self.version, TOKEN_BYTES, self.tokens, *hashes)
        return fields.ljust(HEADER_BYTES, b"\0")

    @classmethod
    def of(cls, path: Path) -> Header:
        """Read the header of a whole shard.

        Raises:
            LaterFormat: a later optsweep wrote it.
            UserError: the file is no shard, or truncated.
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
        refuse_later(path, version)
        if version != VERSION:
            raise UserError(f"{path} is damaged: its format is {version}; must be {VERSION}")
        if width != TOKEN_BYTES or size != HEADER_BYTES + width * tokens:
            raise UserError(
                f"{path} is truncated: it has {size} bytes; must be "
                f"{HEADER_BYTES + TOKEN_BYTES * tokens}, for {tokens} tokens"
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


def whole_shards(directory: Path, manifest: Manifest, split: str) -> list[Path]:
    """Return the paths of a split's shards, whose headers are what the manifest says.

    Raises:
        LaterFormat: one is of a later version.
        UserError: one is missing or another; says what makes it again.
    """
    try:
        return [check_shard(directory, manifest, shard) for shard in manifest.of(split)]
    except LaterFormat:
        raise
    except UserError as error:
        again = command(manifest.dataset, directory)
        raise UserError(f"{error}; {again} makes it again") from None


def check_headers(name: str, directory: Path) -> None:
    """Refuse a prepared dataset of which a shard is missing or another than its manifest says.

    Costs a page a shard, and one ``stat`` when they were read before.

    Raises:
        UserError: so, or the dataset is not prepared.
    """
    prepared(name, directory)
    _check_headers(name, directory, os.stat(directory / MANIFEST_FILE).st_mtime_ns)


@lru_cache(maxsize=16)
def _check_headers(name: str, directory: Path, _: int) -> None:
    manifest = prepared(name, directory)
    for split in (VALIDATION, TRAINING):
        whole_shards(directory, manifest, split)
