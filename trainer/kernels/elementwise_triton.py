# ruff: noqa: N803, N806 - Triton's compile-time constants are in capitals
# ruff: noqa: C901, PLR0912, PLR0915 - branches on them are decided before there is a program
# ruff: noqa: PLR1714, RET505, SIM108 - Triton compiles these forms
"""The elementwise steps over all weights at once: one kernel, compiled for each rule.

Bytes per fp32 weight: 28 for the Adams (4 reads, 3 writes), 20 for lion and sign. Where the step
depends on a sum over all weights it takes two launches: 24 + 16 for momo-adam, 12 + 12 for
sign-gd-nonlmo (+ 16 with nesterov).

What depends on a step's number is computed on the device from the count that lies there, in fp64
once per weight. So a captured graph counts as it is replayed, and nothing is compiled anew.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.kernels.chunks import BLOCK, CHUNK, CHUNK_COLUMNS, SLOT_COLUMNS, SUMS, Part, Plan
from trainer.kernels.operands import Numbers, Rule

Phase = Literal["whole", "averages", "apply"]

_SLOT_BLOCK = 256
_SUM_BLOCK = 256

_ones: dict[torch.device, Tensor] = {}
"""The clip factor of steps that do not clip, and the length of those that have none."""


@triton.jit
def _read(pointer, inside, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(pointer, mask=inside, other=0.0)
    else:
        return tl.load(pointer)


@triton.jit
def _write(pointer, value, inside, MASKED: tl.constexpr):
    if MASKED:
        tl.store(pointer, value, mask=inside)
    else:
        tl.store(pointer, value)


@triton.jit
def _sign(q):
    """Return the sign; as torch's, 0 of NaN."""
    return tl.where(q > 0, 1.0, tl.where(q < 0, -1.0, 0.0))


@triton.jit
def _block(
    weight,
    gradient,
    mean,
    square,
    inside,
    factor,
    step_size,
    weight_decay,
    decay,
    divisor,
    weight1,
    weight2,
    eps,
    mean_scale,
    root_scale,
    gradient_scale,
    RULE: tl.constexpr,
    PHASE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Step one block of addresses; return the three numbers whose sums the rule asks for.

    ``decay`` is lr * weight_decay; MoMo divides by ``divisor`` instead. ``weight1`` and ``weight2``
    are 1 - beta1 and 1 - beta2; the sign rules' ``weight1`` is mu. The last three numbers are
    :func:`corrections_kernel`'s.
    """
    ADAMS: tl.constexpr = RULE == "adam" or RULE == "adamw"
    NADAMS: tl.constexpr = RULE == "nadam" or RULE == "nadamw"
    COUPLED: tl.constexpr = RULE == "adam" or RULE == "nadam"
    MOMO: tl.constexpr = RULE == "momo-adam"
    SIGN: tl.constexpr = RULE == "sign" or RULE == "sign-nesterov"
    SQUARES: tl.constexpr = ADAMS or NADAMS or MOMO
    ADVANCES: tl.constexpr = PHASE != "apply"
    APPLIES: tl.constexpr = PHASE != "averages"

    m = _read(mean, inside, MASKED)
    if ADVANCES or RULE == "sign-nesterov":
        g = _read(gradient, inside, MASKED) * factor
    if APPLIES or MOMO:
        w = _read(weight, inside, MASKED)
    if COUPLED:
        g = g + weight_decay * w
    if SQUARES:
        v = _read(square, inside, MASKED)
        if ADVANCES:
            # (1 - b2) v + ... with b2 rounded by itself would not be an average of ones.
            v = v + weight2 * (g * g - v)
            _write(square, v, inside, MASKED)
        scale = tl.sqrt(v) * root_scale + eps

    if RULE == "lion":
        q = m + weight1 * (g - m)
        m = m + weight2 * (g - m)
    elif SIGN:
        if ADVANCES:
            m = weight1 * m + g
        if RULE == "sign-nesterov":
            q = g + weight1 * m
        else:
            q = m
    elif ADVANCES:
        m = m + weight1 * (g - m)
    if ADVANCES:
        _write(mean, m, inside, MASKED)

    if RULE == "lion" or SIGN:
        move = _sign(q)
    elif NADAMS:
        move = (mean_scale * m + gradient_scale * g) / scale
    elif ADAMS:
        move = mean_scale * m / scale
    else:
        move = m / scale
    if APPLIES:
        if not COUPLED:
            w = w - decay * w
        w = w - step_size * move
        if MOMO:
            w = w / divisor
        _write(weight, w, inside, MASKED)

    if MOMO and ADVANCES:
        return g * w, m * w, m * move
    elif SIGN and not APPLIES:
        return tl.abs(q), tl.abs(q), tl.abs(q)
    else:
        return m, m, m


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
    Phase ``averages`` leaves weights alone and writes the chunk's sums; ``apply`` leaves states
    alone.
    """
    program = first_chunk + tl.program_id(0).to(tl.int64)
    slot = tl.load(chunks + program * CHUNK_COLUMNS).to(tl.int64)
    index = tl.load(chunks + program * CHUNK_COLUMNS + 1).to(tl.int64)
    row = slots + slot * SLOT_COLUMNS
    start = index * CHUNK
    weight = tl.load(row) + 4 * start
    gradient = tl.load(row + 1) + 4 * start
    mean = tl.load(row + 2) + 4 * start
    square = tl.load(row + 3) + 4 * start
    count = tl.minimum(tl.load(row + 6) - start, CHUNK).to(tl.int32)
    blocks = tl.where(tl.load(row + 7) != 0, count // BLOCK, 0)

    factor = tl.load(clip)
    mean_scale = tl.load(corrections + slot * 4)
    root_scale = tl.load(corrections + slot * 4 + 1)
    gradient_scale = tl.load(corrections + slot * 4 + 2)
    if LR_IN_MEMORY:
        rate = tl.load(lr).to(tl.float32)
    else:
        rate = lr
    step_size = rate * tl.load(length)
    decay = rate * weight_decay
    divisor = 1.0
    if RULE == "momo-adam" and DIVIDE:
        divisor = 1.0 + decay
        decay = 0.0

    MEASURES: tl.constexpr = PHASE == "averages"
    lane = tl.arange(0, BLOCK)
    if MEASURES:
        first = tl.zeros([BLOCK], tl.float32)
        second = tl.zeros([BLOCK], tl.float32)
        third = tl.zeros([BLOCK], tl.float32)

    weight_16 = tl.multiple_of(weight.to(tl.pointer_type(tl.float32)), 16)
    gradient_16 = tl.multiple_of(gradient.to(tl.pointer_type(tl.float32)), 16)
    mean_16 = tl.multiple_of(mean.to(tl.pointer_type(tl.float32)), 16)
    square_16 = tl.multiple_of(square.to(tl.pointer_type(tl.float32)), 16)
    for block in range(blocks):
        at = block * BLOCK + lane
        a, b, c = _block(
            weight_16 + at,
            gradient_16 + at,
            mean_16 + at,
            square_16 + at,
            lane,
            factor,
            step_size,
            weight_decay,
            decay,
            divisor,
            weight1,
            weight2,
            eps,
            mean_scale,
            root_scale,
            gradient_scale,
            RULE,
            PHASE,
            False,
        )
        if MEASURES:
            first += a
            second += b
            third += c

    weight_4 = weight.to(tl.pointer_type(tl.float32))
    gradient_4 = gradient.to(tl.pointer_type(tl.float32))
    mean_4 = mean.to(tl.pointer_type(tl.float32))
    square_4 = square.to(tl.pointer_type(tl.float32))
    for tail in range(blocks * BLOCK, count, BLOCK):
        at = tail + lane
        inside = at < count
        a, b, c = _block(
            weight_4 + at,
            gradient_4 + at,
            mean_4 + at,
            square_4 + at,
            inside,
            factor,
            step_size,
            weight_decay,
            decay,
            divisor,
            weight1,
            weight2,
            eps,
            mean_scale,
            root_scale,
            gradient_scale,
            RULE,
            PHASE,
            True,
        )
        if MEASURES:
            first += tl.where(inside, a, 0.0)
            second += tl.where(inside, b, 0.0)
            third += tl.where(inside, c, 0.0)

    if MEASURES:
        tl.store(sums + program * SUMS, tl.sum(first))
        tl.store(sums + program * SUMS + 1, tl.sum(second))
        tl.store(sums + program * SUMS + 2, tl.sum(third))


@triton.jit(do_not_specialize=["first_slot", "count"])
def corrections_kernel(
    slots,
    corrections,
    first_slot,
    count,
    log_beta1,
    log_beta2,
    beta1,
    momentum_decay,
    NADAM: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOT_COLUMNS: tl.constexpr,
):
    """Count a step of ``count`` weights from the first on, and write what its number makes of it.

    A row of ``corrections`` is what multiplies the first moment, the root of the second, and for
    NAdam the gradient. ``log_beta1`` and ``log_beta2`` are natural logarithms.
    """
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = number < count
    i = first_slot + number
    row = slots + i.to(tl.int64) * SLOT_COLUMNS
    counter = tl.load(row + 4, mask=inside, other=0).to(tl.pointer_type(tl.float32))
    step = tl.load(counter, mask=inside, other=0.0) + 1.0
    tl.store(counter, step, mask=inside)
    t = step.to(tl.float64)
    # In fp32 1 - b^t would keep 4 digits of b2 = 0.999's first steps.
    root_scale = 1.0 / tl.sqrt(1.0 - tl.exp(t * log_beta2))
    if NADAM:
        address = tl.load(row + 5, mask=inside, other=0).to(tl.pointer_type(tl.float32))
        log_base = -0.04082199452025517  # of 0.96
        now = beta1 * (1.0 - 0.5 * tl.exp(t * momentum_decay * log_base))
        later = beta1 * (1.0 - 0.5 * tl.exp((t + 1.0) * momentum_decay * log_base))
        kept = (tl.load(address, mask=inside, other=0.0).to(tl.float64) * now).to(tl.float32)
        tl.store(address, kept, mask=inside)
        product = kept.to(tl.float64)
        mean_scale = later / (1.0 - product * later)
        gradient_scale = (1.0 - now) / (1.0 - product)
        tl.store(corrections + i * 4 + 2, gradient_scale.to(tl.float32), mask=inside)
    else:
        mean_scale = 1.0 / (1.0 - tl.exp(t * log_beta1))
    tl.store(corrections + i * 4, mean_scale.to(tl.float32), mask=inside)
    tl.store(corrections + i * 4 + 1, root_scale.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["first_slot"])
def totals_kernel(
    slots,
    sums,
    totals,
    first_slot,
    weight1,
    BLOCK: tl.constexpr,
    SLOT_COLUMNS: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Add up the sums of one weight's chunks, and move MoMo's offset c towards <g, x>.

    A row of ``totals`` is c, <d, x> and <d, d / D>. The order of the additions is fixed.
    """
    slot = first_slot + tl.program_id(0).to(tl.int64)
    row = slots + slot * SLOT_COLUMNS
    chunk = tl.load(row + 8)
    count = tl.load(row + 9).to(tl.int32)
    lane = tl.arange(0, BLOCK)
    first = tl.zeros([BLOCK], tl.float32)
    second = tl.zeros([BLOCK], tl.float32)
    third = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        at = start + lane
        inside = at < count
        address = sums + (chunk + at) * SUMS
        first += tl.load(address, mask=inside, other=0.0)
        second += tl.load(address + 1, mask=inside, other=0.0)
        third += tl.load(address + 2, mask=inside, other=0.0)
    offset_at = tl.load(row + 5).to(tl.pointer_type(tl.float32))
    offset = tl.load(offset_at)
    offset = offset + weight1 * (tl.sum(first) - offset)
    tl.store(offset_at, offset)
    tl.store(totals + slot * SUMS, offset)
    tl.store(totals + slot * SUMS + 1, tl.sum(second))
    tl.store(totals + slot * SUMS + 2, tl.sum(third))


def count_steps(rule: Rule, plan: Plan, part: Part, numbers: Numbers) -> None:
    """Advance the step counts of a group's weights and compute what depends on them."""
    corrections_kernel[(triton.cdiv(part.slots, _SLOT_BLOCK),)](
        plan.slots,
        plan.corrections,
        part.first_slot,
        part.slots,
        _log(numbers.beta1),
        _log(numbers.beta2),
        numbers.beta1,
        float(numbers.momentum_decay),
        NADAM=rule in {"nadam", "nadamw"},
        BLOCK=_SLOT_BLOCK,
        SLOT_COLUMNS=SLOT_COLUMNS,
        num_warps=4,
    )


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
        rule: see :mod:`trainer.kernels.elementwise`.
        plan: of the tensors.
        part: the group's.
        numbers: the group's.
        clip_factor: fp32 scalar on the device that multiplies every gradient; None is 1.
        phase: ``averages`` advances the states and writes ``plan.chunk_sums``, ``apply`` moves the
            weights, ``whole`` does both and has no sums.
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


def momo_totals(plan: Plan, part: Part, numbers: Numbers) -> Tensor:
    """Return a group's c, <d, x> and <d, d / D> after phase ``averages``, a tensor (4,)."""
    totals_kernel[(part.slots,)](
        plan.slots,
        plan.chunk_sums,
        plan.slot_sums,
        part.first_slot,
        1.0 - numbers.beta1,
        BLOCK=_SUM_BLOCK,
        SLOT_COLUMNS=SLOT_COLUMNS,
        SUMS=SUMS,
        num_warps=4,
    )
    return plan.slot_sums[part.first_slot : part.first_slot + part.slots].sum(0)


def _log(beta: float) -> float:
    return math.log(beta) if beta else -math.inf
