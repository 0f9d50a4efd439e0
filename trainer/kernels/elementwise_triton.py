# ruff: noqa: N803, N806 - Triton's compile-time constants are in capitals
# ruff: noqa: PLR0915 - a walk over blocks, and one over the tail
# ruff: noqa: PLR1714, SIM108 - Triton compiles these forms
"""The elementwise steps over all weights at once: one kernel, compiled for each rule.

Bytes per fp32 weight: 28 for the Adams and schedule-free (4 reads, 3 writes), 36 for ademamix, 20
for lion and sign. Where the step depends on a sum it takes two launches: 8 + 36 for mars, 16 + 12
for momo, 24 + 16 for momo-adam, 12 + 12 for sign-gd-nonlmo (+ 16 with nesterov).
"""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.kernels.blocks_triton import step_block
from trainer.kernels.chunks import BLOCK, CHUNK, CHUNK_COLUMNS, SLOT_COLUMNS, SUMS, Part, Plan
from trainer.kernels.operands import Numbers, Rule

Phase = Literal["whole", "sums", "apply"]

_ones: dict[torch.device, Tensor] = {}
"""The clip factor of steps that do not clip, and the length of those that have none."""


@triton.jit(do_not_specialize=["first_chunk"])
def elementwise_kernel(
    chunks,
    slots,
    first_chunk,
    corrections,
    sums,
    clip,
    length,
    lr,
    weight_decay,
    weight1,
    weight2,
    eps,
    RULE: tl.constexpr,
    PHASE: tl.constexpr,
    DIVIDE: tl.constexpr,
    LR_IN_MEMORY: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK_COLUMNS: tl.constexpr,
    SLOT_COLUMNS: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Step one chunk: aligned blocks without masks, for 128-bit accesses, then the tail.

    ``chunks`` and ``slots`` are :mod:`trainer.kernels.chunks`'s tables. ``clip`` and ``length``
    point to one fp32 each, which multiply the gradient and lr. ``lr`` is a number or points to one.
    ``phase`` is :func:`step_chunks`'s.
    """
    program = first_chunk + tl.program_id(0).to(tl.int64)
    slot = tl.load(chunks + program * CHUNK_COLUMNS).to(tl.int64)
    index = tl.load(chunks + program * CHUNK_COLUMNS + 1).to(tl.int64)
    row = slots + slot * SLOT_COLUMNS
    start = index * CHUNK
    weight = tl.load(row) + 4 * start
    gradient = tl.load(row + 1) + 4 * start
    first = tl.load(row + 2) + 4 * start
    second = tl.load(row + 3) + 4 * start
    third = tl.load(row + 4) + 4 * start
    count = tl.minimum(tl.load(row + 7) - start, CHUNK).to(tl.int32)
    blocks = tl.where(tl.load(row + 8) != 0, count // BLOCK, 0)

    factor = tl.load(clip)
    own0 = tl.load(corrections + slot * 4)
    own1 = tl.load(corrections + slot * 4 + 1)
    own2 = tl.load(corrections + slot * 4 + 2)
    own3 = tl.load(corrections + slot * 4 + 3)
    if LR_IN_MEMORY:
        rate = tl.load(lr).to(tl.float32)
    else:
        rate = lr
    step_size = rate * tl.load(length)
    decay = rate * weight_decay
    divisor = 1.0
    if (RULE == "momo" or RULE == "momo-adam") and DIVIDE:
        divisor = 1.0 + decay
        decay = 0.0

    MEASURES: tl.constexpr = PHASE == "sums"
    lane = tl.arange(0, BLOCK)
    if MEASURES:
        sum0 = tl.zeros([BLOCK], tl.float32)
        sum1 = tl.zeros([BLOCK], tl.float32)
        sum2 = tl.zeros([BLOCK], tl.float32)

    weight_16 = tl.multiple_of(weight.to(tl.pointer_type(tl.float32)), 16)
    gradient_16 = tl.multiple_of(gradient.to(tl.pointer_type(tl.float32)), 16)
    first_16 = tl.multiple_of(first.to(tl.pointer_type(tl.float32)), 16)
    second_16 = tl.multiple_of(second.to(tl.pointer_type(tl.float32)), 16)
    third_16 = tl.multiple_of(third.to(tl.pointer_type(tl.float32)), 16)
    for block in range(blocks):
        at = block * BLOCK + lane
        a, b, c = step_block(
            weight_16 + at,
            gradient_16 + at,
            first_16 + at,
            second_16 + at,
            third_16 + at,
            lane,
            factor,
            step_size,
            weight_decay,
            decay,
            divisor,
            weight1,
            weight2,
            eps,
            own0,
            own1,
            own2,
            own3,
            RULE,
            PHASE,
            False,
        )
        if MEASURES:
            sum0 += a
            sum1 += b
            sum2 += c

    weight_4 = weight.to(tl.pointer_type(tl.float32))
    gradient_4 = gradient.to(tl.pointer_type(tl.float32))
    first_4 = first.to(tl.pointer_type(tl.float32))
    second_4 = second.to(tl.pointer_type(tl.float32))
    third_4 = third.to(tl.pointer_type(tl.float32))
    for tail in range(blocks * BLOCK, count, BLOCK):
        at = tail + lane
        inside = at < count
        a, b, c = step_block(
            weight_4 + at,
            gradient_4 + at,
            first_4 + at,
            second_4 + at,
            third_4 + at,
            inside,
            factor,
            step_size,
            weight_decay,
            decay,
            divisor,
            weight1,
            weight2,
            eps,
            own0,
            own1,
            own2,
            own3,
            RULE,
            PHASE,
            True,
        )
        if MEASURES:
            sum0 += tl.where(inside, a, 0.0)
            sum1 += tl.where(inside, b, 0.0)
            sum2 += tl.where(inside, c, 0.0)

    if MEASURES:
        tl.store(sums + program * SUMS, tl.sum(sum0))
        tl.store(sums + program * SUMS + 1, tl.sum(sum1))
        tl.store(sums + program * SUMS + 2, tl.sum(sum2))


def step_chunks(
    rule: Rule,
    plan: Plan,
    part: Part,
    numbers: Numbers,
    clip_factor: Tensor | None,
    *,
    phase: Phase = "whole",
    length: Tensor | None = None,
) -> None:
    """Take one phase of a rule's step on a group's weights.

    Args:
        rule: the modules of trainer.optim have the formulas.
        plan: of the tensors.
        part: the group's.
        numbers: the group's.
        clip_factor: fp32 scalar on the device that multiplies every gradient; None is 1.
        phase: ``sums`` advances the states and writes ``plan.chunk_sums``, ``apply`` moves the
            weights, ``whole`` does both. Of mars ``sums`` only writes them, for ``whole``.
        length: fp32 scalar on the device that multiplies lr; None is 1.
    """
    if not part.chunks:
        return
    device = plan.slots.device
    one = _ones.get(device)
    if one is None:
        one = _ones[device] = torch.ones((), device=device)
    sign = rule in {"sign", "sign-nesterov"}
    elementwise_kernel[(part.chunks,)](
        plan.chunks,
        plan.slots,
        part.first_chunk,
        plan.corrections,
        plan.chunk_sums,
        one if clip_factor is None else clip_factor,
        one if length is None else length,
        numbers.lr if isinstance(numbers.lr, Tensor) else float(numbers.lr),
        float(numbers.weight_decay),
        float(numbers.beta1) if sign else 1.0 - numbers.beta1,
        1.0 - numbers.beta2,
        float(numbers.eps),
        RULE=rule,
        PHASE=phase,
        DIVIDE=numbers.divide,
        LR_IN_MEMORY=isinstance(numbers.lr, Tensor),
        CHUNK=CHUNK,
        BLOCK=BLOCK,
        CHUNK_COLUMNS=CHUNK_COLUMNS,
        SLOT_COLUMNS=SLOT_COLUMNS,
        SUMS=SUMS,
        num_warps=4,
        enable_fp_fusion=True,
    )
