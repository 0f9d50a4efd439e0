"""Cuts many tensors into chunks of one size, so that one launch works on all of them.

Two tables on the device say where everything lies. A row of the slots' table (int64) is a weight:
the addresses of weight, gradient and three states, of its step count and its other scalar, 0 where
there is none; its size; whether the five can be read 128 bits at a time; its first chunk and their
number. A row of the chunks' table (int32) is a weight's row and which of its chunks this is. Only
the first, 88 bytes a weight, has to follow gradients that move.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.kernels.layout import alike
from trainer.kernels.operands import Operands

SLOT_COLUMNS = 11
CHUNK_COLUMNS = 2
CHUNK = 8192
"""Elements of a chunk: a multiple of BLOCK; the tables cost 8 bytes per 224 KB moved."""
BLOCK = 1024
"""Elements that a program handles at once: two 128-bit loads per thread and tensor."""
SUMS = 4
"""fp32 numbers that a program may leave for its chunk, or for its weight."""

_VECTOR_BYTES = 16
_KEPT_TABLES = 8
_Array = np.ndarray[Any, np.dtype[Any]]
_chunks: OrderedDict[tuple[torch.device, tuple[int, ...]], tuple[Tensor, Tensor]] = OrderedDict()


class Part(NamedTuple):
    """Which rows of a plan's tables are one group's."""

    first_slot: int
    slots: int
    first_chunk: int
    chunks: int


@dataclass(frozen=True)
class Plan:
    """Where the tensors of a step lie, and room for what its launches tell each other."""

    slots: Tensor
    """The slots' table."""
    chunks: Tensor
    """The chunks' table."""
    parts: tuple[Part, ...]
    """One for each group."""
    corrections: Tensor
    """fp32 (slots, 4): what is each weight's own in a step, as its number's corrections."""
    chunk_sums: Tensor
    """fp32 (chunks, 4)."""
    slot_sums: Tensor
    """fp32 (slots, 4)."""
    squares: Tensor
    """fp32 (chunks,): of the gradient, for its norm."""
    copies: tuple[tuple[Tensor, Tensor], ...]
    """Weights whose gradient has another order in memory, and room for it in the weight's."""
    host: Tensor
    """The slots' table before it was copied: a captured graph copies it at every replay."""
    chunks_host: Tensor
    """Likewise."""

    def refresh(self) -> None:
        """Bring gradients of another order in memory into their weights'."""
        for weight, room in self.copies:
            if weight.grad is not None:
                room.copy_(weight.grad)


def build_plan(
    groups: Sequence[Operands], *, spare: Tensor | None = None, capturing: bool = False
) -> Plan:
    """Return the plan of these groups' tensors, fp32 and dense, on one device.

    Args:
        groups: with at least one weight between them.
        spare: another plan's ``host``, which may be overwritten: while a graph is captured no
            pinned memory can be allocated.
        capturing: the tables reach the device at the graph's replays only, so that other plans
            must not share them.
    """
    device = next(weight for group in groups for weight in group.weights).device
    copies: list[tuple[Tensor, Tensor]] = []
    slots = np.array([row for group in groups for row in _rows(group, copies)], dtype=np.int64)
    counts = -(-slots[:, 7] // CHUNK)
    slots[:, 9], slots[:, 10] = np.cumsum(counts) - counts, counts
    host = _host(slots, device, spare)
    total = int(counts.sum())
    chunks, chunks_host = _chunk_table(slots, device, capturing=capturing)
    return Plan(
        slots=host.to(device, non_blocking=True),
        chunks=chunks,
        parts=_parts([len(group.weights) for group in groups], counts),
        corrections=torch.zeros(len(slots), SUMS, device=device),
        chunk_sums=torch.zeros(total, SUMS, device=device),
        slot_sums=torch.zeros(len(slots), SUMS, device=device),
        squares=torch.zeros(total, device=device),
        copies=tuple(copies),
        host=host,
        chunks_host=chunks_host,
    )


def _rows(group: Operands, copies: list[tuple[Tensor, Tensor]]) -> list[list[int]]:
    rows = []
    for i, (weight, gradient) in enumerate(zip(group.weights, group.gradients, strict=True)):
        if not alike(weight, gradient):
            gradient = torch.empty_like(weight)  # noqa: PLW2901 - from here on it stands there
            copies.append((weight, gradient))
        tensors = [weight, gradient, *(state[i] for state in group.states)]
        addresses = [tensor.data_ptr() for tensor in tensors] + [0] * (5 - len(tensors))
        aligned = all(address % _VECTOR_BYTES == 0 for address in addresses)
        scalars = [column[i].data_ptr() if column else 0 for column in (group.steps, group.scalars)]
        rows.append([*addresses, *scalars, weight.numel(), int(aligned), 0, 0])
    return rows


def _parts(weights: Sequence[int], counts: _Array) -> tuple[Part, ...]:
    slots = np.concatenate(([0], np.cumsum(weights)))
    chunks = np.concatenate(([0], np.cumsum(counts)))[slots]
    ends = zip(slots, slots[1:], chunks, chunks[1:], strict=False)
    return tuple(Part(int(a), int(b - a), int(c), int(d - c)) for a, b, c, d in ends)


def _chunk_table(slots: _Array, device: torch.device, *, capturing: bool) -> tuple[Tensor, Tensor]:
    """Return the chunks' table on the device and the host, kept since sizes hardly ever change."""
    key = (device, tuple(slots[:, 7]))
    tables = _chunks.get(key)
    if tables is None:
        owner = np.repeat(np.arange(len(slots)), slots[:, 10])
        index = np.arange(len(owner)) - slots[owner, 9]
        host = _host(np.stack((owner, index), axis=1).astype(np.int32), device)
        tables = host.to(device, non_blocking=True), host
        if capturing:
            return tables
        _chunks[key] = tables
        while len(_chunks) > _KEPT_TABLES:
            _chunks.popitem(last=False)
    _chunks.move_to_end(key)
    return tables


def _host(table: _Array, device: torch.device, spare: Tensor | None = None) -> Tensor:
    host = torch.from_numpy(table)
    if device.type != "cuda":
        return host
    if spare is not None and spare.shape == host.shape:
        return spare.copy_(host)
    # Copied from pinned memory the table does not make the host wait for the device.
    return host.pin_memory()
