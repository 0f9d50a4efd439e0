# ruff: noqa: N803 - Triton's compile-time constants are in capitals
# ruff: noqa: PLR1714 - Triton compiles these forms
"""The numbers that each weight has of its own in a step: what its count makes of it, and its sums.

They are computed on the device from the count that lies there, in fp64 once per weight. So a
captured graph counts as it is replayed, and nothing is compiled anew. A row of a plan's
``corrections`` is

    adam, adamw      what multiplies the first moment, and the root of the second
    nadam, nadamw    likewise; what multiplies the gradient
    momo, momo-adam  likewise; unused; the share of new values in the averages
    ademamix         as adamw's; the share of new gradients in the slow average; its weight
    mars             as adamw's; what multiplies the gradient's change; what clips the result
    schedule-free    the step of z; the share of z in y; the step of y
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.kernels.chunks import SLOT_COLUMNS, SUMS, Part, Plan
from trainer.kernels.operands import Numbers, Rule

_SLOT_BLOCK = 256
_SUM_BLOCK = 256
_SLOTS = {"BLOCK": _SLOT_BLOCK, "SLOT_COLUMNS": SLOT_COLUMNS, "num_warps": 4}
_CHUNKS = {"BLOCK": _SUM_BLOCK, "SLOT_COLUMNS": SLOT_COLUMNS, "SUMS": SUMS, "num_warps": 4}


@triton.jit(do_not_specialize=["first_slot", "count"])
def corrections_kernel(
    slots,
    corrections,
    first_slot,
    count,
    log_beta1,
    log_beta2,
    beta1,
    weight1,
    momentum_decay,
    ahead,
    RULE: tl.constexpr,
    FROM_ZERO: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOT_COLUMNS: tl.constexpr,
):
    """Count a step of ``count`` weights from the first on, and write what its number makes of it.

    ``log_beta1`` and ``log_beta2`` are natural logarithms, ``weight1`` is 1 - beta1.
    Counts are fp64 if WIDE, else fp32.
    """
    i = first_slot + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < first_slot + count
    row = slots + i.to(tl.int64) * SLOT_COLUMNS
    own = corrections + i * 4
    t = _count_step(row, inside, WIDE)
    # In fp32 1 - b^t would keep 4 digits of b2 = 0.999's first steps.
    root_scale = 1.0 / tl.sqrt(1.0 - tl.exp(t * log_beta2))
    if RULE == "nadam" or RULE == "nadamw":
        address = tl.load(row + 6, mask=inside, other=0).to(tl.pointer_type(tl.float32))
        log_base = -0.04082199452025517  # of 0.96
        now = beta1 * (1.0 - 0.5 * tl.exp(t * momentum_decay * log_base))
        later = beta1 * (1.0 - 0.5 * tl.exp((t + 1.0) * momentum_decay * log_base))
        kept = (tl.load(address, mask=inside, other=0.0).to(tl.float64) * now).to(tl.float32)
        tl.store(address, kept, mask=inside)
        product = kept.to(tl.float64)
        mean_scale = later / (1.0 - product * later)
        tl.store(own + 2, ((1.0 - now) / (1.0 - product)).to(tl.float32), mask=inside)
    else:
        mean_scale = 1.0 / (1.0 - tl.exp(t * log_beta1))
    if RULE == "mars":
        tl.store(own + 2, tl.where(t > 1.0, ahead, 0.0), mask=inside)
    if RULE == "momo" or RULE == "momo-adam":
        first_share = weight1 if FROM_ZERO else 1.0
        tl.store(own + 3, tl.where(t > 1.0, weight1, first_share), mask=inside)
    tl.store(own, mean_scale.to(tl.float32), mask=inside)
    tl.store(own + 1, root_scale.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["first_slot", "count"])
def slow_kernel(
    slots,
    corrections,
    first_slot,
    count,
    fast_reach,
    slow_reach,
    reach_pace,
    alpha,
    alpha_pace,
    BLOCK: tl.constexpr,
    SLOT_COLUMNS: tl.constexpr,
):
    """Write what the number of a step, counted before, makes of ademamix's slow average.

    A reach is -1 / ln(beta), a pace the part of the way that is gone in a step.
    """
    i = first_slot + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < first_slot + count
    row = slots + i.to(tl.int64) * SLOT_COLUMNS
    counter = tl.load(row + 5, mask=inside, other=0).to(tl.pointer_type(tl.float64))
    t = tl.load(counter, mask=inside, other=1.0)
    gone = tl.minimum(t * reach_pace, 1.0)
    reach = tl.minimum((1.0 - gone) * fast_reach + gone * slow_reach, slow_reach)
    decay = tl.where(reach > 0.0, tl.exp(-1.0 / tl.maximum(reach, 1e-9)), 0.0)
    own = corrections + i * 4
    tl.store(own + 2, (1.0 - decay).to(tl.float32), mask=inside)
    tl.store(own + 3, (alpha * tl.minimum(t * alpha_pace, 1.0)).to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["first_slot", "count"])
def free_kernel(
    slots,
    corrections,
    first_slot,
    count,
    lr,
    weight1,
    log_beta2,
    pace,
    LR_IN_MEMORY: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOT_COLUMNS: tl.constexpr,
):
    """Count schedule-free's step and what it weighs in the average, both fp64.

    ``pace`` is the part of the warm-up that is gone in a step.
    """
    i = first_slot + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < first_slot + count
    row = slots + i.to(tl.int64) * SLOT_COLUMNS
    t = _count_step(row, inside, True)
    rate = lr
    if LR_IN_MEMORY:
        rate = tl.load(lr).to(tl.float64)
    size = tl.sqrt(1.0 - tl.exp(t * log_beta2)) * tl.minimum(t * pace, 1.0) * rate
    address = tl.load(row + 6, mask=inside, other=0).to(tl.pointer_type(tl.float64))
    total = tl.load(address, mask=inside, other=0.0) + size * size
    tl.store(address, total, mask=inside)
    # A step of size 0 has no share.
    share = size * size / tl.where(total == 0.0, 1.0, total)
    own = corrections + i * 4
    tl.store(own, size.to(tl.float32), mask=inside)
    tl.store(own + 1, share.to(tl.float32), mask=inside)
    step = size * (weight1 + (1.0 - weight1) * share)
    tl.store(own + 2, step.to(tl.float32), mask=inside)


@triton.jit
def _count_step(row, inside, WIDE: tl.constexpr):
    """Advance the weights' counts and return them, fp64."""
    address = tl.load(row + 5, mask=inside, other=0)
    if WIDE:
        counter = address.to(tl.pointer_type(tl.float64))
    else:
        counter = address.to(tl.pointer_type(tl.float32))
    step = tl.load(counter, mask=inside, other=0.0) + 1.0
    tl.store(counter, step, mask=inside)
    return step.to(tl.float64)


@triton.jit(do_not_specialize=["first_slot"])
def totals_kernel(
    slots,
    sums,
    totals,
    corrections,
    first_slot,
    BLOCK: tl.constexpr,
    SLOT_COLUMNS: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Add up the sums of one weight's chunks, and move MoMo's offset c towards <g, x>.

    A row of ``totals`` is c, <d, x> and <d, d / D>. The order of the additions is fixed.
    """
    slot = first_slot + tl.program_id(0).to(tl.int64)
    row = slots + slot * SLOT_COLUMNS
    offset_at = tl.load(row + 6).to(tl.pointer_type(tl.float32))
    offset = tl.load(offset_at)
    share = tl.load(corrections + slot * 4 + 3)
    offset = offset + share * (_chunk_total(row, sums, BLOCK, SUMS) - offset)
    tl.store(offset_at, offset)
    tl.store(totals + slot * SUMS, offset)
    tl.store(totals + slot * SUMS + 1, _chunk_total(row, sums + 1, BLOCK, SUMS))
    tl.store(totals + slot * SUMS + 2, _chunk_total(row, sums + 2, BLOCK, SUMS))


@triton.jit(do_not_specialize=["first_slot"])
def clip_kernel(
    slots,
    sums,
    corrections,
    first_slot,
    BLOCK: tl.constexpr,
    SLOT_COLUMNS: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Write what clips one weight's corrected gradient to norm 1, for mars."""
    slot = first_slot + tl.program_id(0).to(tl.int64)
    norm = tl.sqrt(_chunk_total(slots + slot * SLOT_COLUMNS, sums, BLOCK, SUMS))
    # A norm that is NaN stays so.
    tl.store(corrections + slot * 4 + 3, 1.0 / tl.where(norm < 1.0, 1.0, norm))


@triton.jit
def _chunk_total(row, sums, BLOCK: tl.constexpr, SUMS: tl.constexpr):
    """Return the sum over a weight's chunks, in a fixed order."""
    chunk = tl.load(row + 9)
    count = tl.load(row + 10).to(tl.int32)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        at = start + lane
        total += tl.load(sums + (chunk + at) * SUMS, mask=at < count, other=0.0)
    return tl.sum(total)


def count_steps(
    rule: Rule, plan: Plan, part: Part, numbers: Numbers, counts: torch.dtype = torch.float32
) -> None:
    """Advance the counts, of dtype ``counts``, of a group's weights; compute what depends on them.

    Of schedule-free :func:`free_shares` does.
    """
    corrections_kernel[_programs(part)](
        plan.slots,
        plan.corrections,
        part.first_slot,
        part.slots,
        _log(numbers.beta1),
        _log(numbers.beta2),
        float(numbers.beta1),
        1.0 - numbers.beta1,
        float(numbers.momentum_decay),
        float(numbers.ahead),
        RULE=rule,
        FROM_ZERO=numbers.from_zero,
        WIDE=counts == torch.float64,
        **_SLOTS,
    )


def slow_average(
    plan: Plan,
    part: Part,
    *,
    reaches: tuple[float, float],
    reach_pace: float,
    alpha: float,
    alpha_pace: float,
) -> None:
    """Compute the share and the weight of ademamix's slow averages; their steps are counted.

    Args:
        plan: of the tensors.
        part: the group's.
        reaches: -1 / ln of the decay of the fast average and of the slow one in the end.
        reach_pace: reciprocal of the steps from one to the other.
        alpha: weight in the end.
        alpha_pace: reciprocal of the steps from 0 to there.
    """
    slow_kernel[_programs(part)](
        plan.slots,
        plan.corrections,
        part.first_slot,
        part.slots,
        *map(float, (*reaches, reach_pace, alpha, alpha_pace)),
        **_SLOTS,
    )


def free_shares(plan: Plan, part: Part, numbers: Numbers, pace: float) -> None:
    """Count schedule-free's steps and what they weigh; compute the sizes of their moves."""
    in_memory = isinstance(numbers.lr, Tensor)
    free_kernel[_programs(part)](
        plan.slots,
        plan.corrections,
        part.first_slot,
        part.slots,
        numbers.lr if in_memory else float(numbers.lr),
        1.0 - numbers.beta1,
        _log(numbers.beta2),
        float(pace),
        LR_IN_MEMORY=in_memory,
        **_SLOTS,
    )


def momo_totals(plan: Plan, part: Part) -> Tensor:
    """Return a group's c, <d, x> and <d, d / D> after phase ``sums``, a tensor (4,)."""
    totals_kernel[(part.slots,)](
        plan.slots,
        plan.chunk_sums,
        plan.slot_sums,
        plan.corrections,
        part.first_slot,
        **_CHUNKS,
    )
    return plan.slot_sums[part.first_slot : part.first_slot + part.slots].sum(0)


def clip_corrected(plan: Plan, part: Part) -> None:
    """Compute what clips mars's gradients, each weight's by itself, after phase ``sums``."""
    clip_kernel[(part.slots,)](
        plan.slots,
        plan.chunk_sums,
        plan.corrections,
        part.first_slot,
        **_CHUNKS,
    )


def _programs(part: Part) -> tuple[int]:
    return (triton.cdiv(part.slots, _SLOT_BLOCK),)


def _log(beta: float) -> float:
    return math.log(beta) if beta else -math.inf
