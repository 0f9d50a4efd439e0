# ruff: noqa: N803 - Triton's compile-time constants are in capitals
"""The AdamW step in one launch: 28 bytes per fp32 weight (4 reads, 3 writes).

mypy checks the host side; what Triton compiles is Python by syntax only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.kernels.chunks import BLOCK, COLUMNS, chunk_table
from trainer.kernels.operands import AdamWScalars, Slot

_ones: dict[torch.device, Tensor] = {}
"""The clip factor of steps that do not clip."""


@triton.jit
def _moved(
    w,
    g,
    m,
    v,
    mean_weight,
    square_decay,
    square_weight,
    decay,
    step_size,
    root_correction,
    eps,
):
    """Return the new weight and moments, all fp32."""
    m = m + mean_weight * (g - m)
    v = square_decay * v + square_weight * g * g
    w = w - decay * w
    w = w - step_size * m / (tl.sqrt(v) * root_correction + eps)
    return w, m, v


@triton.jit
def adamw_kernel(
    table,
    clip,
    mean_weight,
    square_decay,
    square_weight,
    decay,
    step_size,
    root_correction,
    eps,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update one chunk: aligned blocks without masks, for 128-bit loads, then the tail.

    ``table`` is :mod:`trainer.kernels.chunks`'s; ``clip`` points to one fp32.
    """
    row = table + tl.program_id(0).to(tl.int64) * COLUMNS
    weight = tl.load(row)
    gradient = tl.load(row + 1)
    mean = tl.load(row + 2)
    square = tl.load(row + 3)
    count = tl.load(row + 4).to(tl.int32)
    blocks = tl.load(row + 5).to(tl.int32)
    factor = tl.load(clip)
    lane = tl.arange(0, BLOCK)

    weight_16 = tl.multiple_of(weight.to(tl.pointer_type(tl.float32)), 16)
    gradient_16 = tl.multiple_of(gradient.to(tl.pointer_type(tl.float32)), 16)
    mean_16 = tl.multiple_of(mean.to(tl.pointer_type(tl.float32)), 16)
    square_16 = tl.multiple_of(square.to(tl.pointer_type(tl.float32)), 16)
    for block in range(blocks):
        at = block * BLOCK + lane
        w, m, v = _moved(
            tl.load(weight_16 + at),
            tl.load(gradient_16 + at) * factor,
            tl.load(mean_16 + at),
            tl.load(square_16 + at),
            mean_weight,
            square_decay,
            square_weight,
            decay,
            step_size,
            root_correction,
            eps,
        )
        tl.store(weight_16 + at, w)
        tl.store(mean_16 + at, m)
        tl.store(square_16 + at, v)

    weight_4 = weight.to(tl.pointer_type(tl.float32))
    gradient_4 = gradient.to(tl.pointer_type(tl.float32))
    mean_4 = mean.to(tl.pointer_type(tl.float32))
    square_4 = square.to(tl.pointer_type(tl.float32))
    for start in range(blocks * BLOCK, count, BLOCK):
        at = start + lane
        inside = at < count
        w, m, v = _moved(
            tl.load(weight_4 + at, mask=inside, other=0.0),
            tl.load(gradient_4 + at, mask=inside, other=0.0) * factor,
            tl.load(mean_4 + at, mask=inside, other=0.0),
            tl.load(square_4 + at, mask=inside, other=0.0),
            mean_weight,
            square_decay,
            square_weight,
            decay,
            step_size,
            root_correction,
            eps,
        )
        tl.store(weight_4 + at, w, mask=inside)
        tl.store(mean_4 + at, m, mask=inside)
        tl.store(square_4 + at, v, mask=inside)


def adamw_step_triton(
    slots: Sequence[Slot], scalars: AdamWScalars, clip_factor: Tensor | None
) -> None:
    """Launch the kernel once over all slots; as :func:`trainer.kernels.adamw_step`."""
    slots = [_laid_out_alike(slot) for slot in slots if slot.weight.numel()]
    if not slots:
        return
    table = chunk_table(slots)
    device = slots[0].weight.device
    if clip_factor is None:
        clip_factor = _ones.setdefault(device, torch.ones((), device=device))
    adamw_kernel[(table.shape[0],)](
        table,
        clip_factor,
        1 - scalars.beta1,
        scalars.beta2,
        1 - scalars.beta2,
        scalars.lr * scalars.weight_decay,
        scalars.step_size,
        scalars.root_correction,
        scalars.eps,
        COLUMNS=COLUMNS,
        BLOCK=BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )


def _laid_out_alike(slot: Slot) -> Slot:
    """Return the slot with its gradient in the weight's order in memory, copied if it is not."""
    if slot.gradient.stride() == slot.weight.stride():
        return slot
    return slot._replace(gradient=torch.empty_like(slot.weight).copy_(slot.gradient))
