"""Elementwise steps on a CPU, a cache's worth of numbers at a time.

A step of ten operators reads and writes its tensors ten times; in pieces that stay in a core's
cache memory sees it once. A bundle is one piece of a large tensor, or many small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from trainer.kernels.layout import alike, dense
from trainer.kernels.threads import run_pieces

Columns = list[list[Tensor]]
"""Weights, gradients, states: of each kind a list, all as long, what belongs together alike."""

Step = Callable[[Columns, list[int]], None]
"""Works in place, number by number, whatever the shapes; gets the columns and of which weight, by
its index, each piece is."""

_NUMBERS = 32768
"""Of each column in a bundle: with five of them, and two temporary ones, 900 KB."""

_NUMBERS_PER_US = 400.0
"""What a thread does of an Adam, about."""


def can_bundle(columns: Sequence[Sequence[Tensor]]) -> bool:
    """Whether all are on a CPU, without gaps, of one type, and what belongs together lies alike."""
    first, *others = columns
    return all(
        weight.device.type == "cpu"
        and weight.dtype == first[0].dtype
        and dense(weight)
        and all(alike(weight, other) for other in row)
        for weight, *row in zip(first, *others, strict=True)
    )


def step_in_bundles(columns: Sequence[Sequence[Tensor]], step: Step) -> None:
    """Call ``step`` on bundles that together are all of the columns; each thread has its own.

    Args:
        columns: as :func:`can_bundle` wants them.
        step: see :data:`Step`.
    """
    bundles: list[tuple[Columns, list[int]]] = []
    sizes: list[int] = []
    room = 0
    for owner, row in enumerate(zip(*columns, strict=True)):
        flat = [_in_memory_order(tensor) for tensor in row]
        for start in range(0, len(flat[0]), _NUMBERS):
            piece = [each[start : start + _NUMBERS] for each in flat]
            count = len(piece[0])
            if count > room:
                bundles.append(([[] for _ in piece], []))
                sizes.append(0)
                room = _NUMBERS
            bundle, owners = bundles[-1]
            for column, each in zip(bundle, piece, strict=True):
                column.append(each)
            owners.append(owner)
            sizes[-1] += count
            room -= count
    run_pieces(
        [partial(step, *bundle) for bundle in bundles], [size / _NUMBERS_PER_US for size in sizes]
    )


def _in_memory_order(tensor: Tensor) -> Tensor:
    """Return a flat view of a tensor without gaps."""
    return torch.as_strided(tensor, (tensor.numel(),), (1,))
