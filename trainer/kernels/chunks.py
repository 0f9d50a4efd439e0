"""Cuts many tensors into chunks of one size, so that one launch works on all of them.

The table is an int64 tensor (chunks, 8) on the device: the addresses of a chunk in the weight, the
gradient and two states; its elements; how many blocks of it can be read 128 bits at a time; 0, 0.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

COLUMNS = 8
CHUNK = 8192
"""Elements of a chunk: a multiple of BLOCK; the table costs 64 bytes per 224 KB moved."""
BLOCK = 1024
"""Elements that a program handles at once: two 128-bit loads per thread and tensor."""

_VECTOR_BYTES = 16
_KEPT_TABLES = 8
_tables: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()


def chunk_table(slots: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the table of these fp32 tensors, each slot's four of one size and dense.

    Kept by address, so that steps whose gradients lie where they lay copy nothing to the device;
    the sizes are part of the key, since a freed address may come back with another.
    """
    key = tuple(
        number for slot in slots for number in (slot[0].numel(), *(t.data_ptr() for t in slot))
    )
    table = _tables.get(key)
    if table is None:
        table = _to_device(_build(slots), slots[0][0].device)
        _tables[key] = table
        while len(_tables) > _KEPT_TABLES:
            _tables.popitem(last=False)
    _tables.move_to_end(key)
    return table


def _build(slots: Sequence[Sequence[Tensor]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    sizes = np.array([slot[0].numel() for slot in slots], dtype=np.int64)
    addresses = np.array([[t.data_ptr() for t in slot] for slot in slots], dtype=np.int64)
    chunks = -(-sizes // CHUNK)
    owner = np.repeat(np.arange(len(slots)), chunks)
    first = np.cumsum(chunks) - chunks
    start = (np.arange(len(owner)) - first[owner]) * CHUNK
    table = np.zeros((len(owner), COLUMNS), dtype=np.int64)
    table[:, :4] = addresses[owner] + start[:, None] * 4
    table[:, 4] = np.minimum(CHUNK, sizes[owner] - start)
    aligned = (addresses % _VECTOR_BYTES == 0).all(axis=1)
    table[:, 5] = np.where(aligned[owner], table[:, 4] // BLOCK, 0)
    return table


def _to_device(table: np.ndarray[Any, np.dtype[np.int64]], device: torch.device) -> Tensor:
    host = torch.from_numpy(table)
    if device.type != "cuda":
        return host
    # Copied from pinned memory the table does not make the host wait for the device.
    return host.pin_memory().to(device, non_blocking=True)
