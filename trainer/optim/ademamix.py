"""ademamix: AdamW with a second, much slower average of the gradient (arXiv 2409.03137).

    m1 <- b1 m1 + (1 - b1) g;   m2 <- b3(t) m2 + (1 - b3(t)) g;   v <- b2 v + (1 - b2) g^2
    W <- (1 - lr wd) W - lr (m1 / (1 - b1^t) + a(t) m2) / (sqrt(v / (1 - b2^t)) + eps)

    a(t) = a min(t / alpha_warmup, 1)
    1 / ln b3(t) = (1 - u) / ln b1 + u / ln b3,   u = min(t / beta3_warmup, 1),   b3(t) <= b3

This is a step of AdamW and one of m2 over the same root. All averages start at zero, and m2 is not
corrected for it. 1 / ln b is a half-life but for a factor: what is interpolated is how far back the
slow average looks. A non-finite gradient goes into the state: whoever steps looks first. A step
never waits for the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainer.kernels import Backend, choose_backend
from trainer.kernels.chunks import Plan
from trainer.kernels.operands import Numbers
from trainer.optim.counted import CountedElementwise
from trainer.optim.groups import trainable
from trainer.optim.params import AdEMAMixParams
from trainer.optim.scaling import Number, each, move_towards


class AdEMAMix(CountedElementwise):
    """12 bytes of state per fp32 weight; the kernel moves 36, torch makes a copy of the weights."""

    def __init__(self, weights: Any, params: AdEMAMixParams, backend: Backend = "torch") -> None:
        super().__init__(weights, params, backend)
        self._params = params

    def _states(self, group: dict[str, Any], weights: list[Tensor]) -> list[list[Tensor]]:  # noqa: ARG002
        return [self._zeros(key, weights) for key in ("exp_avg", "exp_avg_sq", "exp_avg_slow")]

    def _step_triton(self, plan: Plan, clip_factor: Tensor | None) -> None:
        from trainer.kernels.elementwise_triton import step_chunks
        from trainer.kernels.numbers_triton import count_steps, slow_average

        p = self._params
        for group, part in zip(self.param_groups, plan.parts, strict=True):
            if not part.slots:
                continue
            numbers = Numbers(group["lr"], group["weight_decay"], *p.betas, p.eps)
            count_steps("ademamix", plan, part, numbers, torch.float64)
            slow_average(
                plan,
                part,
                reaches=(_reach(p.betas[0]), _reach(p.beta3)),
                reach_pace=1 / (p.beta3_warmup or 1),
                alpha=p.alpha,
                alpha_pace=1 / (p.alpha_warmup or 1),
            )
            step_chunks("ademamix", plan, part, numbers, clip_factor)

    def _move(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Any], step: Number
    ) -> None:
        p = self._params
        slow = self._zeros("exp_avg_slow", weights)
        move_towards(slow, gradients, 1 - slow_decay(p, step))
        self._move_by_adamw(group, weights, gradients, step, p.betas, p.eps)
        roots = self._roots(weights, step, p.betas[1], p.eps)
        if isinstance(share := -group["lr"] * slow_share(p, step), Tensor):
            slow = list(torch._foreach_mul(slow, each(share, weights)))
            share = 1.0
        torch._foreach_addcdiv_(weights, slow, roots, share)


def slow_share(params: AdEMAMixParams, step: Number) -> Number:
    """Return a(t), the weight of the slow average in this step."""
    return params.alpha * _progress(step, params.alpha_warmup)


def slow_decay(params: AdEMAMixParams, step: Number) -> Number:
    """Return b3(t), the decay of the slow average in this step."""
    progress = _progress(step, params.beta3_warmup)
    reach = (1 - progress) * _reach(params.betas[0]) + progress * _reach(params.beta3)
    if isinstance(reach, Tensor):
        return (-1 / reach).exp().clamp(max=params.beta3)
    return min(math.exp(-1 / reach), params.beta3) if reach else 0.0


def _reach(beta: float) -> float:
    """Return the steps in which an average's weights fall to 1 / e."""
    return -1 / math.log(beta) if beta else 0.0


def _progress(step: Number, warmup: int | None) -> Number:
    if warmup is None:
        return 1.0
    part = step / warmup
    return part.clamp(max=1.0) if isinstance(part, Tensor) else min(part, 1.0)


def build_ademamix(model: nn.Module, params: AdEMAMixParams) -> AdEMAMix:
    """Build ademamix.

    Raises:
        UserError: the Triton backend is asked for and cannot work.
    """
    weights = trainable(model)
    return AdEMAMix(weights, params, choose_backend(params.backend, weights))
