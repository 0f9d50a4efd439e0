# ruff: noqa: N806 - tensor names end in their shape
"""Times X^T X on the GPU at hand: where the table of :mod:`trainer.kernels.gram` comes from.

python -c "from trainer.kernels.gram_timing import *; print(timing_table(measure()))"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.kernels.symmetric_timing import ROTATED_BYTES, device_time
from trainer.kernels.symmetric_triton import TILINGS, Tiling, gram_parts_triton

SHAPES = tuple((rows, size) for rows in (8192, 32768) for size in (768, 1024, 2048, 2752))
"""(R, N): the tokens of a micro-batch and the widths of GPTs' layers."""

PARTS = (1, 2, 3, 4, 6, 8, 12)


class GramTiming(NamedTuple):
    """Medians in microseconds of one shape."""

    shape: tuple[int, int]
    cublas: float
    """The whole product, summed in fp32."""
    triton: dict[tuple[int, Tiling], float]
    """By parts and tiling, with the sum of the parts."""


def measure(
    shapes: Sequence[tuple[int, int]] = SHAPES,
    dtype: torch.dtype = torch.bfloat16,
    parts: Sequence[int] = PARTS,
    repeats: int = 20,
) -> list[GramTiming]:
    """Time each shape; about a second each, most of it compiling.

    Args:
        shapes: (R, N).
        dtype: of X.
        parts: to try with each of a few tilings.
        repeats: timings of which the median is taken, after three that warm up.
    """
    return [_timing(shape, dtype, parts, repeats) for shape in shapes]


def timing_table(timings: Sequence[GramTiming]) -> str:
    """Return the timings as text: what Triton takes in units of cuBLAS, the best tiling's each."""
    lines = ["R x N          cublas us  triton by parts, and the best tiling"]
    for each in timings:
        best: dict[int, float] = {}
        for (parts, _), spent in each.triton.items():
            best[parts] = min(spent, best.get(parts, spent))
        ratios = "  ".join(f"{parts}: {spent / each.cublas:.2f}" for parts, spent in best.items())
        _, tiling = min(each.triton, key=lambda key: each.triton[key])
        name = "x".join(map(str, each.shape))
        lines.append(f"{name:<14} {each.cublas:>9.1f}  {ratios}  {tiling}")
    return "\n".join(lines)


def _timing(
    shape: tuple[int, int], dtype: torch.dtype, parts: Sequence[int], repeats: int
) -> GramTiming:
    rows, size = shape
    copies = max(2, ROTATED_BYTES // (rows * size * dtype.itemsize))
    x_RN = [torch.randn(shape, device="cuda").to(dtype) for _ in range(copies)]
    whole_NN = torch.empty(size, size, device="cuda")

    def whole(x: Tensor) -> None:
        torch.mm(x.mT, x, out_dtype=torch.float32)

    def half(count: int, tiling: Tiling) -> float:
        part = -(-rows // (count * tiling.depth)) * tiling.depth
        sums_SNN = torch.empty(-(-rows // part), size, size, device="cuda")

        def run(x: Tensor) -> None:
            gram_parts_triton(x, sums_SNN, part, tiling)
            if len(sums_SNN) > 1:
                torch.sum(sums_SNN, 0, out=whole_NN)

        return device_time(run, x_RN, repeats)

    triton = {(count, tiling): half(count, tiling) for tiling in _tilings(dtype) for count in parts}
    return GramTiming(shape, device_time(whole, x_RN, repeats), triton)


def _tilings(dtype: torch.dtype) -> Iterator[Tiling]:
    for own in dict.fromkeys(tiling for _, tiling in TILINGS[dtype]):
        yield own
        if own.warps > 4:
            yield replace(own, warps=4)
