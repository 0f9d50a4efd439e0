"""What wandb has put on the disk of a run: its file is a log of LevelDB's, of protobuf records."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32768
"""A record that is longer, or begins near a block's end, comes in fragments of one block each."""
_HEADER = struct.Struct("<IHB")
"""CRC, length and kind of a fragment."""
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_PREFIX = 7
"""Bytes before the first fragment, part of the first block."""
_TAIL_BYTES = 256 * _BLOCK
"""More than wandb writes in the seconds after which a record is known to be on the disk."""


def last_steps_offline(directory: Path) -> dict[str, int]:
    """Return the last step of each stream that wandb's newest offline file holds; reads its end.

    Args:
        directory: ``wandb`` in the run directory.

    Raises:
        Exception: whatever protobuf raises of a damaged file.
    """
    files = list(directory.glob("offline-run-*/run-*.wandb"))
    found: dict[str, int] = {}
    for record in _records(max(files, key=os.path.getmtime)) if files else ():
        if record.WhichOneof("record_type") == "history":
            keys = (item.key or item.nested_key[0] for item in record.history.item)
            streams = {key.partition("/")[0] for key in keys if "/" in key}
            found |= dict.fromkeys(streams, record.history.step.num)
    return found


def _records(file: Path) -> Iterator[Any]:
    """Yield the whole records at the end of a file; a kill may have torn the last one."""
    from wandb.proto import wandb_internal_pb2 as messages

    record: Any = getattr(messages, "Record")  # noqa: B009 - made when the module is imported
    whole: bytes | None = None  # of what began before the part that is read, nothing
    for kind, part in _fragments(file):
        if kind in {_FULL, _FIRST}:
            whole = part
        elif whole is not None:
            whole += part
        if kind in {_FULL, _LAST} and whole is not None:
            yield record.FromString(whole)


def _fragments(file: Path) -> Iterator[tuple[int, bytes]]:
    first = max(0, (file.stat().st_size - _TAIL_BYTES) // _BLOCK * _BLOCK)
    with file.open("rb") as stream:
        stream.seek(first)
        data = stream.read()
    at = 0 if first else _PREFIX
    while at + _HEADER.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER.size:
            at += left
            continue
        _, size, kind = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        if kind not in {_FULL, _FIRST, _MIDDLE, _LAST} or at + size > len(data):
            return
        yield kind, data[at : at + size]
        at += size
