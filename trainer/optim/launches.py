"""The launches of the spectral family: averages and steps of a group by the elementwise kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from trainer.kernels import AdamWScalars, adamw_step
from trainer.kernels.chunks import Part, Plan
from trainer.kernels.operands import Numbers, Operands, Slot


@dataclass(frozen=True)
class Swept:
    """A group in the adam norms whose averages a kernel has advanced, before another moves it.

    Both are MoMo-Adam's: it measures the same sums, and its step has a length on the device.
    """

    plan: Plan
    part: Part
    numbers: Numbers
    totals: Tensor
    """c, <W, m> and sum m^2 / (sqrt(v) + eps) of each weight, fp32 (weights, 4)."""

    @classmethod
    def of(cls, group: dict[str, Any], plan: Plan, part: Part, clip_factor: Tensor | None) -> Swept:
        """Advance m, v and c."""
        from trainer.kernels.elementwise_triton import step_chunks
        from trainer.kernels.numbers_triton import momo_totals

        numbers = numbers_of(group)
        # Nothing to correct; the fourth is the share that m and c move by.
        plan.corrections.fill_(1.0)
        plan.corrections[:, 3].fill_(1.0 - numbers.beta1)
        step_chunks("momo-adam", plan, part, numbers, clip_factor, phase="sums")
        momo_totals(plan, part)
        rows = slice(part.first_slot, part.first_slot + part.slots)
        return cls(plan, part, numbers, plan.slot_sums[rows])

    def move(self, length: Tensor) -> None:
        """Move by the learning rate times this along m / (sqrt(v) + eps)."""
        from trainer.kernels.elementwise_triton import step_chunks

        step_chunks(
            "momo-adam", self.plan, self.part, self.numbers, None, phase="apply", length=length
        )


def advance(group: dict[str, Any], plan: Plan, part: Part, clip_factor: Tensor | None) -> None:
    """Advance m."""
    from trainer.kernels.elementwise_triton import step_chunks

    numbers = _sign_numbers(group)
    step_chunks("lion", plan, part, numbers, clip_factor, phase="sums")


def step_alone(group: dict[str, Any], plan: Plan, part: Part, clip_factor: Tensor | None) -> None:
    """Advance m and v and move, in one launch: by sign(m) in linf, by m / (sqrt(v) + eps) else."""
    from trainer.kernels.elementwise_triton import step_chunks

    if group["norm"] == "linf":
        step_chunks("lion", plan, part, _sign_numbers(group), clip_factor)
        return
    plan.corrections.fill_(1.0)
    step_chunks("adamw", plan, part, numbers_of(group), clip_factor)


def step_alone_torch(group: dict[str, Any], operands: Operands, clip_factor: Tensor | None) -> None:
    """Move by m / (sqrt(v) + eps): AdamW with nothing to correct, which torch has fused."""
    slots = list(map(Slot, operands.weights, operands.gradients, *operands.states))
    n = numbers_of(group)
    scalars = AdamWScalars(group["lr"], n.beta1, n.beta2, n.eps, n.weight_decay, math.inf)
    adamw_step(slots, scalars, "torch", clip_factor)


def numbers_of(group: dict[str, Any]) -> Numbers:
    """Return what a group's kernels go by."""
    return Numbers(
        group["lr"],
        group["weight_decay"],
        group["momentum"],
        group.get("beta2", 0.0),
        group.get("eps", 0.0),
        divide=False,
    )


def _sign_numbers(group: dict[str, Any]) -> Numbers:
    """Return lion's: with two equal decays it moves by the sign of its average."""
    return replace(numbers_of(group), beta2=group["momentum"])
