# ruff: noqa: N806 - tensor names end in their shape
"""Times the symmetric products on the GPU at hand: where the tables of the kernel come from.

python -c "from trainer.kernels.symmetric_timing import *; print(timing_table(measure()))"
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.kernels.symmetric import symmetric_product
from trainer.kernels.symmetric_triton import Tiling, symmetric_product_triton, tiling_of

SHAPES = (
    *((batch, 768, n) for batch in (1, 6, 12, 24) for n in (768, 2048, 2304)),
    *((batch, 1024, n) for batch in (1, 6, 24) for n in (1024, 2752, 3072)),
    *((batch, 1280, n) for batch in (1, 6) for n in (1280, 3456)),
    *((1, side, side) for side in (512, 2048, 4096)),
)
"""(B, M, N) of the GPTs' batches, padded, and of single matrices."""

ROTATED_BYTES = 256 << 20
"""The operands go round in this much memory, so that none is still in the L2 cache."""


class Timing(NamedTuple):
    """Medians in microseconds of one shape, and its fastest tiling."""

    shape: tuple[int, int, int]
    cublas: float
    """x x^T whole."""
    triton: float
    """x x^T by the tiling that is launched."""
    best: float
    """x x^T by the fastest tiling."""
    tiling: Tiling
    cublas_plus: float
    """The second product of a step: c A A^T + b A + a I, whole."""
    triton_plus: float


def measure(
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    dtype: torch.dtype = torch.bfloat16,
    tilings: Sequence[Tiling] | None = None,
    repeats: int = 20,
) -> list[Timing]:
    """Time each shape; about a second each, most of it compiling.

    Args:
        shapes: (B, M, N).
        dtype: of the operands and results.
        tilings: to try; by default some around the one that is launched for a large batch.
        repeats: timings of which the median is taken, after three that warm up.
    """
    tried = tilings or _around(tiling_of(dtype, batch=6, rows=768), dtype)
    return [_timing(shape, dtype, tried, repeats) for shape in shapes]


def timing_table(timings: Sequence[Timing]) -> str:
    """Return the timings as text, with what Triton takes in units of cuBLAS."""
    lines = ["B x M x N            cublas us  triton  best   plus: cublas us  triton  best tiling"]
    for each in timings:
        name = "x".join(map(str, each.shape))
        lines.append(
            f"{name:<20} {each.cublas:>9.1f}  {each.triton / each.cublas:>6.2f}"
            f"  {each.best / each.cublas:>4.2f}  {each.cublas_plus:>15.1f}"
            f"  {each.triton_plus / each.cublas_plus:>6.2f}  {each.tiling}"
        )
    return "\n".join(lines)


def _timing(
    shape: tuple[int, int, int], dtype: torch.dtype, tilings: Sequence[Tiling], repeats: int
) -> Timing:
    batch, rows, columns = shape
    numbers = batch * rows * max(rows, columns)
    copies = max(2, ROTATED_BYTES // (numbers * dtype.itemsize))
    x_BMN = [torch.randn(shape, device="cuda").to(dtype) for _ in range(copies)]
    a_BMM = [torch.randn(batch, rows, rows, device="cuda").to(dtype) for _ in range(copies)]
    out = torch.empty_like(a_BMM[0])

    def by(tiling: Tiling | None) -> Callable[[Tensor], None]:
        return lambda x: symmetric_product_triton(x, None, out, 1.0, 1.0, 0.0, tiling)

    def whole(x: Tensor) -> None:
        symmetric_product(x, out=out, backend="torch")

    def whole_plus(a: Tensor) -> None:
        symmetric_product(a, plus=a, alpha=0.5, beta=-2.0, diagonal=3.0, out=out, backend="torch")

    def half_plus(a: Tensor) -> None:
        symmetric_product_triton(a, a, out, 0.5, -2.0, 3.0)

    times = {tiling: device_time(by(tiling), x_BMN, repeats) for tiling in tilings}
    best = min(times, key=lambda tiling: times[tiling])
    return Timing(
        shape,
        cublas=device_time(whole, x_BMN, repeats),
        triton=device_time(by(None), x_BMN, repeats),
        best=times[best],
        tiling=best,
        cublas_plus=device_time(whole_plus, a_BMM, repeats),
        triton_plus=device_time(half_plus, a_BMM, repeats),
    )


def device_time(run: Callable[[Tensor], None], operands: Sequence[Tensor], repeats: int) -> float:
    """Return the device's microseconds a call, the median after three that warm up."""
    times: list[float] = []
    for i in range(3 + repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The device is kept busy meanwhile: a launch takes longer than a small product.
        torch.cuda._sleep(200_000)
        start.record()
        run(operands[i % len(operands)])
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times[3:])


def _around(tiling: Tiling, dtype: torch.dtype) -> list[Tiling]:
    if dtype == torch.float32:
        exact = [tiling, replace(tiling, block=128, warps=8, depth=16)]
        return exact + [replace(each, precision="tf32x3") for each in exact]
    return [
        tiling,
        replace(tiling, stages=3),
        replace(tiling, warps=4, stages=3),
        replace(tiling, depth=128, stages=2),
        replace(tiling, depth=32, stages=5),
        replace(tiling, block=64, warps=4),
    ]
