# ruff: noqa: N803 - Triton's compile-time constants are in capitals
"""The global norm of all gradients in two launches: 4 bytes per fp32 weight, no host between them.

Every sum has a fixed order, so that two runs agree to the bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.kernels.chunks import BLOCK, CHUNK, CHUNK_COLUMNS, SLOT_COLUMNS, Plan

_SUM_BLOCK = 4096


@triton.jit
def squares_kernel(
    chunks,
    slots,
    squares,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK_COLUMNS: tl.constexpr,
    SLOT_COLUMNS: tl.constexpr,
):
    """Write the sum of squares of one chunk of the gradient."""
    program = tl.program_id(0).to(tl.int64)
    slot = tl.load(chunks + program * CHUNK_COLUMNS).to(tl.int64)
    index = tl.load(chunks + program * CHUNK_COLUMNS + 1).to(tl.int64)
    row = slots + slot * SLOT_COLUMNS
    start = index * CHUNK
    gradient = tl.load(row + 1) + 4 * start
    count = tl.minimum(tl.load(row + 7) - start, CHUNK).to(tl.int32)
    blocks = tl.where(tl.load(row + 8) != 0, count // BLOCK, 0)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    gradient_16 = tl.multiple_of(gradient.to(tl.pointer_type(tl.float32)), 16)
    for block in range(blocks):
        g = tl.load(gradient_16 + block * BLOCK + lane)
        total += g * g
    gradient_4 = gradient.to(tl.pointer_type(tl.float32))
    for tail in range(blocks * BLOCK, count, BLOCK):
        g = tl.load(gradient_4 + tail + lane, mask=tail + lane < count, other=0.0)
        total += g * g
    tl.store(squares + program, tl.sum(total))


@triton.jit(do_not_specialize=["count"])
def factor_kernel(squares, norm, factor, count, limit, BLOCK: tl.constexpr):
    """Add up ``count`` sums of squares and write their root and min(1, limit / (root + 1e-6))."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        at = start + lane
        total += tl.load(squares + at, mask=at < count, other=0.0).to(tl.float64)
    root = tl.sqrt(tl.sum(total)).to(tl.float32)
    ratio = limit / (root + 1e-6)
    tl.store(norm, root)
    # Not a minimum, which would make 1 of NaN.
    tl.store(factor, tl.where(ratio > 1.0, 1.0, ratio))


def clip_triton(plan: Plan, limit: float) -> tuple[Tensor, Tensor]:
    """Return the norm of a plan's gradients and the factor that clips them, fp32 scalars."""
    device = plan.slots.device
    norm, factor = torch.empty((), device=device), torch.empty((), device=device)
    count = len(plan.squares)
    if count:
        squares_kernel[(count,)](
            plan.chunks,
            plan.slots,
            plan.squares,
            CHUNK=CHUNK,
            BLOCK=BLOCK,
            CHUNK_COLUMNS=CHUNK_COLUMNS,
            SLOT_COLUMNS=SLOT_COLUMNS,
            num_warps=4,
        )
    factor_kernel[(1,)](
        plan.squares, norm, factor, count, float(limit), BLOCK=_SUM_BLOCK, num_warps=8
    )
    return norm, factor
