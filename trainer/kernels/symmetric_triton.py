# ruff: noqa: N803 - tensor names end in their shape, compile-time constants are in capitals
"""Batched alpha x x^T + beta plus + diagonal I: the tiles of the lower triangle, stored twice.

It does (T + 1) / 2T of the work of a whole product, T tiles a side: 0.58 at 768, 0.56 at 1024.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

NO_LIMIT = 1 << 62


@dataclass(frozen=True)
class Tiling:
    """How the kernel is compiled."""

    block: int
    """Rows and columns of a tile of the result."""
    depth: int
    """Columns of x that a program loads at once."""
    warps: int
    stages: int
    """Loads in flight: each takes 2 x block x depth elements of shared memory."""
    group: int = 8
    """Rows of tiles that are worked on together, so that their part of x stays in the L2 cache."""
    precision: Literal["ieee", "tf32x3"] = "ieee"
    """Of fp32 products: without tensor cores, or as three TF32 products that are about as exact."""


_FULL = Tiling(block=128, depth=64, warps=8, stages=4)
_TWICE = Tiling(block=128, depth=64, warps=8, stages=3)
"""96 KB of shared memory: two programs fit on a multiprocessor of sm_90."""
_HALF = (
    (64, Tiling(block=64, depth=64, warps=4, stages=4)),
    (132, _FULL),
    (264, _TWICE),
    (384, _FULL),
    (512, _TWICE),
    (NO_LIMIT, _FULL),
)
TILINGS = {
    torch.bfloat16: _HALF,
    torch.float16: _HALF,
    torch.float32: ((NO_LIMIT, Tiling(block=64, depth=32, warps=4, stages=3)),),
}
"""What is launched unless the caller says otherwise, for results of up to so many tiles of 128.

x x^T on an H100 of 132 multiprocessors, bf16, in units of cuBLAS's time: by _FULL, and by the best
tiling that was tried where that is another:

    B x M       tiles   N = M           N = 2.7 M
    1 x 768        21   1.33  0.95 a    1.33  0.97 a    a  block=64: else half of the GPU would idle
    1 x 1280       55   1.10  0.97 a    1.12  1.02 a
    6 x 768       126   0.88            0.69
    6 x 1024      216   0.92  0.82 c    0.88  0.78 c    b  _TWICE: as many tiles as fit at a time
    12 x 768      252   0.86  0.72 c    0.77  0.69 b    c  _TWICE with 4 warps, of which sm_80 and
    6 x 1280      330   0.87            0.78               sm_100 spill registers
    24 x 768      504   1.04  0.92 b    0.89  0.84 b
    1 x 4096      528   0.65  0.63 c
    24 x 1024     864   0.93  0.91 c    0.81
"""


@cache
def tiling_of(dtype: torch.dtype, batch: int, rows: int) -> Tiling:
    """Return how the kernel is compiled for a result (batch, rows, rows)."""
    side = -(-rows // 128)
    tiles = batch * side * (side + 1) // 2
    return next(tiling for most, tiling in TILINGS[dtype] if tiles <= most)


@triton.jit
def _triangle_row(index):
    """Return the row of the index-th element of a lower triangle stored row by row."""
    row = ((tl.sqrt(8.0 * index + 1.0) - 1.0) * 0.5).to(tl.int32)
    # The root is rounded: at large indices it may fall on the wrong side.
    row = tl.where(row * (row + 1) // 2 > index, row - 1, row)
    return tl.where((row + 1) * (row + 2) // 2 <= index, row + 1, row)


@triton.jit
def _tile(index, side, GROUP: tl.constexpr):
    """Return row and column of a tile: GROUP rows at a time, column by column within them."""
    first = _triangle_row(index) // GROUP * GROUP
    rows = tl.minimum(GROUP, side - first)
    index = index - first * (first + 1) // 2
    before = first * rows
    inner = tl.maximum(index - before, 0)
    inner_row = _triangle_row(inner)
    inner_column = inner - inner_row * (inner_row + 1) // 2
    row = tl.where(index < before, first + index % rows, first + inner_row)
    column = tl.where(index < before, index // rows, first + inner_column)
    return row, column


@triton.jit
def symmetric_kernel(
    x,
    plus,
    out,
    alpha,
    beta,
    diagonal,
    M,
    N,
    total_columns,
    x_batch,
    x_row,
    x_column,
    plus_batch,
    plus_row,
    out_batch,
    out_row,
    HAS_PLUS: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute one tile of one matrix and store it and its mirror image.

    A tile of ``plus`` is read by the program that overwrites it, so ``out`` may be ``plus``. The
    matrices may be parts of one, ``total_columns`` wide, the last part narrower than N.
    """
    side = tl.cdiv(M, BLOCK)
    tiles = side * (side + 1) // 2
    program = tl.program_id(0)
    batch = (program // tiles).to(tl.int64)
    row, column = _tile(program % tiles, side, GROUP)

    lane = tl.arange(0, BLOCK)
    rows = row * BLOCK + lane
    columns = column * BLOCK + lane
    # Rows past the end are read again from the start, and not stored: no mask in the loop.
    row_from = rows if EVEN_M else rows % M
    column_from = columns if EVEN_M else columns % M
    depth = tl.arange(0, DEPTH)
    x += batch * x_batch
    left = x + row_from[:, None] * x_row + depth[None, :] * x_column
    right = x + column_from[None, :] * x_row + depth[:, None] * x_column
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    columns_here = tl.minimum(N, total_columns - batch * N).to(tl.int32)
    for start in range(0, columns_here, DEPTH):
        if EVEN_N:
            a = tl.load(left)
            b = tl.load(right)
        else:
            inside = depth < columns_here - start
            a = tl.load(left, mask=inside[None, :], other=0.0)
            b = tl.load(right, mask=inside[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
        left += DEPTH * x_column
        right += DEPTH * x_column

    total *= alpha
    stored = (rows < M)[:, None] & (columns < M)[None, :]
    if HAS_PLUS:
        plus += batch * plus_batch
        added = tl.load(plus + rows[:, None] * plus_row + columns[None, :], mask=stored, other=0.0)
        total += beta * added.to(tl.float32)
    total += tl.where(rows[:, None] == columns[None, :], diagonal, 0.0)
    result = total.to(out.dtype.element_ty)
    out += batch * out_batch
    tl.store(out + rows[:, None] * out_row + columns[None, :], result, mask=stored)
    if row != column:
        mirrored = (columns < M)[:, None] & (rows < M)[None, :]
        at = out + columns[:, None] * out_row + rows[None, :]
        tl.store(at, tl.trans(result), mask=mirrored)


def symmetric_product_triton(
    x_BMN: Tensor,
    plus_BMM: Tensor | None,
    out_BMM: Tensor,
    alpha: float,
    beta: float,
    diagonal: float,
    tiling: Tiling | None = None,
) -> None:
    """Launch the kernel once; as :func:`trainer.kernels.symmetric.symmetric_product`.

    Args:
        x_BMN: bf16, fp16, or fp32 in full precision; any strides, best when one of them is 1.
        plus_BMM: None or symmetric, its rows dense.
        out_BMM: its rows dense; of any float dtype.
        alpha: of x x^T.
        beta: of ``plus_BMM``.
        diagonal: added to the diagonal.
        tiling: None for :func:`tiling_of`'s.
    """
    batch, rows, columns = x_BMN.shape
    how = tiling or tiling_of(x_BMN.dtype, batch, rows)
    _launch(
        x_BMN,
        x_BMN.stride(),
        plus_BMM,
        out_BMM,
        (alpha, beta, diagonal),
        columns,
        batch * columns,
        how,
    )


def gram_parts_triton(
    x_RN: Tensor, out_SNN: Tensor, part: int, tiling: Tiling | None = None
) -> None:
    """Write X^T X of each ``part`` rows, of which S are enough for all; the last may be fewer.

    Args:
        x_RN: as ``x_BMN`` of :func:`symmetric_product_triton`.
        out_SNN: dense; of any float dtype.
        part: best a multiple of the tiling's depth.
        tiling: None for :func:`tiling_of`'s.
    """
    by_row, by_column = x_RN.stride()
    strides = (part * by_row, by_column, by_row)
    how = tiling or tiling_of(x_RN.dtype, *out_SNN.shape[:2])
    _launch(x_RN, strides, None, out_SNN, (1.0, 1.0, 0.0), part, x_RN.shape[0], how)


def _launch(
    x: Tensor,
    x_strides: tuple[int, ...],
    plus_BMM: Tensor | None,
    out_BMM: Tensor,
    factors: tuple[float, float, float],
    columns: int,
    total_columns: int,
    how: Tiling,
) -> None:
    batch, rows, _ = out_BMM.shape
    side = triton.cdiv(rows, how.block)
    plus = out_BMM if plus_BMM is None else plus_BMM
    symmetric_kernel[(batch * side * (side + 1) // 2,)](
        x,
        plus,
        out_BMM,
        # Floats: a whole number 1 would be compiled in.
        *map(float, factors),
        rows,
        columns,
        total_columns,
        *x_strides,
        *plus.stride()[:2],
        *out_BMM.stride()[:2],
        HAS_PLUS=plus_BMM is not None,
        EVEN_M=rows % how.block == 0,
        EVEN_N=columns % how.depth == 0 and total_columns % how.depth == 0,
        BLOCK=how.block,
        DEPTH=how.depth,
        GROUP=how.group,
        PRECISION=how.precision,
        num_warps=how.warps,
        num_stages=how.stages,
    )
