# ruff: noqa: N803, N806 - tensor names end in their shape
"""X^T X by symmetric products: few tiles, each a long sum, so that parts of it fill the device.

Shape suffixes: R rows, N columns, S parts.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from trainer.kernels.backend import launch_fault

if TYPE_CHECKING:
    from trainer.kernels.symmetric_triton import Tiling


class Split(NamedTuple):
    """How the kernel is launched for a shape: tiles of 128 x 128, 64 rows at a time."""

    parts: int
    """Of the rows, summed at the same time."""
    warps: int
    stages: int

    @property
    def tiling(self) -> Tiling:
        """As the kernel takes it."""
        from trainer.kernels.symmetric_triton import Tiling

        return Tiling(_TILE, _PART_MULTIPLE, self.warps, self.stages)


_TILE = 128
_MEASURED_ON = (9, 0)
"""The compute capability that the table holds for; others are left to cuBLAS."""
_SPLITS: dict[int, dict[int, Split]] = {
    8192: {8: Split(3, 4, 4), 22: Split(1, 4, 3)},
    32768: {6: Split(6, 8, 4), 8: Split(3, 8, 4), 16: Split(3, 4, 3), 22: Split(1, 4, 3)},
}
"""By the least rows and the tiles a side: the best split where Triton is clearly faster.

An H100 in bf16, in units of cuBLAS's time, by the best tiling, the sum of the parts included:

    R x N           1 part  2     3     4     6     8     12
    8192 x 768      1.46  1.31  1.12  1.09  1.05
    8192 x 1024     0.97  0.97  0.85  1.09
    8192 x 2048     0.97  1.19  1.15
    8192 x 2752     0.57  0.90  1.01  1.09
    32768 x 768     1.90  1.44  1.07  0.91  0.79  0.94  0.87
    32768 x 1024    1.29  0.96  0.76  1.04  0.82
    32768 x 2048    0.96  0.92  0.83  0.88  0.93
    32768 x 2752    0.58  0.71  0.75  0.77  0.83

What decides is how well the tiles of all parts fill the 132 multiprocessors: 126 of 768 by six
parts, 253 of 2752 at two a multiprocessor, but 136 of 2048. So an entry holds for the widths with
as many tiles a side as were measured, at any rows from its own to the next entry's, and what was
not measured is left to cuBLAS. :func:`trainer.kernels.gram_timing.measure` measures it again."""
_PART_MULTIPLE = 64
"""Rows of a part are a multiple of this, so that only the last has a loop's end to look out for."""
_ALIGNMENT = 16
"""Bytes that rows must begin at a multiple of to be read without detours through registers."""


def gram_by_parts(x_RN: Tensor, parts: int, tiling: Tiling | None = None) -> Tensor:
    """Return X^T X in fp32 (N, N), by the Triton kernel.

    Args:
        x_RN: bf16, fp16 or fp32 on CUDA, with at least one row.
        parts: that the rows are summed in at the same time; fewer where there are fewer rows.
        tiling: None for the one that suits a batch of as many symmetric products.
    """
    from trainer.kernels.symmetric_triton import gram_parts_triton

    rows, size = x_RN.shape
    part = -(-rows // (parts * _PART_MULTIPLE)) * _PART_MULTIPLE
    sums_SNN = torch.empty(-(-rows // part), size, size, device=x_RN.device)
    gram_parts_triton(x_RN, sums_SNN, part, tiling)
    return sums_SNN[0] if len(sums_SNN) == 1 else sums_SNN.sum(0)


def split_of(x_RN: Tensor) -> Split | None:
    """Return how :func:`gram_by_parts` is faster than cuBLAS here; None where it is not."""
    if x_RN.device.type != "cuda" or x_RN.dtype not in {torch.bfloat16, torch.float16}:
        return None
    if x_RN.stride(1) != 1 or x_RN.stride(0) * x_RN.itemsize % _ALIGNMENT:
        return None
    return measured_split(*x_RN.shape) if _measured_here(x_RN.device) else None


def measured_split(rows: int, size: int) -> Split | None:
    """Return the split of X (rows, size), or None where cuBLAS is as fast or nothing is known."""
    least = max((each for each in _SPLITS if each <= rows), default=0)
    return _SPLITS.get(least, {}).get(-(-size // _TILE))


@cache
def _measured_here(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) == _MEASURED_ON and launch_fault() is None
