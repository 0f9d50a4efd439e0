"""sign-gd, sign-gd-nonlmo and lion: every weight moves equally far, by the sign of a momentum.

    sign-gd   B <- mu B + g;   q = g + mu B with nesterov, else B
              x <- (1 - lr wd) x - lr sign(q);   nonlmo: - lr |q|_1 sign(q)
    lion      q = b1 m + (1 - b1) g;   m <- b2 m + (1 - b2) g          (arXiv 2302.06675)
              x <- (1 - lr wd) x - lr sign(q)

|q|_1 is the sum over all weights, the dual of the norm that sign-gd descends in. B and m start at
zero; g is the clipped gradient. A non-finite gradient goes into the state: whoever steps looks
first. A step never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.kernels import Backend, choose_backend
from trainer.kernels.adam import clipped
from trainer.kernels.chunks import Plan
from trainer.kernels.operands import Numbers, Operands, Rule
from trainer.optim.averages import kept
from trainer.optim.elementwise import Elementwise
from trainer.optim.groups import trainable
from trainer.optim.params import LionParams, SignParams


class SignDescent(Elementwise):
    """All three: 4 bytes of state per fp32 weight."""

    def __init__(
        self,
        weights: list[nn.Parameter],
        params: SignParams | LionParams,
        backend: Backend = "torch",
    ) -> None:
        super().__init__(weights, {"lr": params.lr, "weight_decay": params.weight_decay})
        self._params, self.backend = params, backend

    def _operands(self, group: dict[str, Any]) -> Operands:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        key = "exp_avg" if isinstance(self._params, LionParams) else "momentum_buffer"
        momenta = kept(self.state, key, weights, weights, from_zero=True)
        return Operands(weights, [weight.grad for weight in weights], [momenta])

    def _step_torch(self, groups: Sequence[Operands], clip_factor: Tensor | None) -> None:
        momenta = [self._momenta(operands, clip_factor) for operands in groups if operands.weights]
        length = self._length([momentum for group in momenta for momentum in group])
        steps = iter(momenta)
        for group, operands in zip(self.param_groups, groups, strict=True):
            if not operands.weights:
                continue
            if group["weight_decay"]:
                torch._foreach_mul_(operands.weights, 1 - group["lr"] * group["weight_decay"])
            moves = torch._foreach_sign(next(steps))
            size = group["lr"] if length is None else group["lr"] * length
            torch._foreach_mul_(moves, size)
            torch._foreach_sub_(operands.weights, moves)

    def _momenta(self, operands: Operands, clip_factor: Tensor | None) -> list[Tensor]:
        """Advance the state and return q."""
        p = self._params
        gradients, state = clipped(operands.gradients, clip_factor), operands.states[0]
        if isinstance(p, LionParams):
            beta1, beta2 = p.betas
            momenta = torch._foreach_lerp(state, gradients, 1 - beta1)
            torch._foreach_lerp_(state, gradients, 1 - beta2)
            return list(momenta)
        torch._foreach_mul_(state, p.momentum)
        torch._foreach_add_(state, gradients)
        if not p.nesterov:
            return state
        return list(torch._foreach_add(gradients, state, alpha=p.momentum))

    def _length(self, momenta: list[Tensor]) -> Tensor | None:
        """Return what a step is multiplied by beside lr; None is 1."""
        if not self._measures or not momenta:
            return None
        wide = torch.promote_types(momenta[0].dtype, torch.float32)
        length: Tensor = torch.stack(torch._foreach_norm(momenta, 1, dtype=wide)).sum()
        return length

    def _step_triton(self, plan: Plan, clip_factor: Tensor | None) -> None:
        from trainer.kernels.elementwise_triton import step_chunks

        parts = [
            (part, self._numbers(group))
            for group, part in zip(self.param_groups, plan.parts, strict=True)
        ]
        if not self._measures:
            for part, numbers in parts:
                step_chunks(self._rule, plan, part, numbers, clip_factor)
            return
        for part, numbers in parts:
            step_chunks(self._rule, plan, part, numbers, clip_factor, phase="sums")
        length = plan.chunk_sums[:, 0].sum()
        for part, numbers in parts:
            step_chunks(self._rule, plan, part, numbers, clip_factor, phase="apply", length=length)

    def _numbers(self, group: dict[str, Any]) -> Numbers:
        p = self._params
        betas = p.betas if isinstance(p, LionParams) else (p.momentum, 0.0)
        return Numbers(group["lr"], group["weight_decay"], *betas)

    @property
    def _rule(self) -> Rule:
        if isinstance(self._params, LionParams):
            return "lion"
        return "sign-nesterov" if self._params.nesterov else "sign"

    @property
    def _measures(self) -> bool:
        """Whether a step is as long as the sum of all momenta's magnitudes."""
        return self._params.name == "sign-gd-nonlmo"


def build_sign(model: nn.Module, params: SignParams | LionParams) -> SignDescent:
    """Build sign-gd, sign-gd-nonlmo or lion.

    Raises:
        UserError: the Triton backend is asked for and cannot work.
    """
    weights = trainable(model)
    return SignDescent(weights, params, choose_backend(params.backend, weights))
