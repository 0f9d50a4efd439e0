# ruff: noqa: N803 - tensor names end in their shape, compile-time constants are in capitals
"""Inverses of small matrices' Cholesky factors, batched: one program a matrix, one launch for all.

Shape suffixes: K matrices, N their size.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

LARGEST = 128
"""A matrix stays in one program's registers: 64 a thread."""
_WARPS = 8


@triton.jit
def inverse_factor_kernel(
    c,
    out,
    N,
    c_batch,
    c_row,
    c_column,
    out_batch,
    out_row,
    out_column,
    BLOCK: tl.constexpr,
):
    """Factor one matrix and invert the factor, both in one tile, column by column.

    Columns from the current one on hold what is left of C, symmetric, those before it the inverse
    so far. A step takes a column l of the factor out of the former, as the row that it also is, and
    subtracts from every row i below l_i times the step's own row: of l^T on the right, of the
    inverse on the left.
    """
    matrix = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    i = lane[:, None]
    j = lane[None, :]
    inside = (i < N) & (j < N)
    address = matrix * c_batch + tl.maximum(i, j) * c_row + tl.minimum(i, j) * c_column
    tile = tl.load(c + address, mask=inside, other=0.0)
    for step in range(N):
        row = tl.sum(tl.where(i == step, tile, 0.0), axis=0)
        pivot = tl.sum(tl.where(lane == step, row, 0.0), axis=0)
        # Rounding may leave nothing or less of a direction: it is dropped, as by a pseudo-inverse.
        dropped = pivot <= 0.0
        scale = tl.where(dropped, 0.0, 1.0 / tl.sqrt_rn(tl.where(dropped, 1.0, pivot)))
        below = tl.where(lane > step, row * scale, 0.0)
        across = tl.where(lane == step, 1.0, row) * scale
        tile = tl.where((j == step) & (i > step), 0.0, tile)
        tile -= below[:, None] * across[None, :]
        tile = tl.where(i == step, across[None, :], tile)
    address = matrix * out_batch + i * out_row + j * out_column
    tl.store(out + address, tl.where(j <= i, tile, 0.0), mask=inside)


def inverse_factor_triton(c_KNN: Tensor, out_KNN: Tensor) -> None:
    """Write the inverse of each C's lower Cholesky factor, lower triangular.

    A direction of which rounding leaves no positive pivot has zeros in the inverse.

    Args:
        c_KNN: fp32, N at most ``LARGEST``, any strides; only the lower triangles are read.
        out_KNN: fp32, any strides.
    """
    inverse_factor_kernel[(c_KNN.shape[0],)](
        c_KNN,
        out_KNN,
        c_KNN.shape[-1],
        *c_KNN.stride(),
        *out_KNN.stride(),
        BLOCK=max(16, triton.next_power_of_2(c_KNN.shape[-1])),
        num_warps=_WARPS,
    )
