"""sign-gd, sign-gd-nonlmo and lion: every weight moves equally far, by the sign of a momentum.

    sign-gd   B <- mu B + g;   q = g + mu B with nesterov, else B
              x <- (1 - lr wd) x - lr sign(q);   nonlmo: - lr |q|_1 sign(q)
    lion      q = b1 m + (1 - b1) g;   m <- b2 m + (1 - b2) g          (arXiv 2302.06675)
              x <- (1 - lr wd) x - lr sign(q)

|q|_1 is the sum over all weights, the dual of the norm that sign-gd descends in. B and m start at
zero. A non-finite gradient goes into the state: whoever steps looks first. A step never waits for
the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.optim.averages import kept
from trainer.optim.groups import trainable
from trainer.optim.params import LionParams, SignParams


class SignDescent(torch.optim.Optimizer):
    """All three: 4 bytes of state per fp32 weight."""

    def __init__(self, weights: list[nn.Parameter], params: SignParams | LionParams) -> None:
        super().__init__(weights, {"lr": params.lr, "weight_decay": params.weight_decay})
        self._params = params

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parts = []
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                gradients = [weight.grad for weight in weights]
                parts.append((group, weights, self._momenta(weights, gradients)))
        length = self._length([momentum for _, _, momenta in parts for momentum in momenta])
        for group, weights, momenta in parts:
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            moves = torch._foreach_sign(momenta)
            if length is not None:
                torch._foreach_mul_(moves, length)
            torch._foreach_add_(weights, moves, alpha=-group["lr"])
        return loss

    def _momenta(self, weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """Advance the state and return q."""
        p = self._params
        if isinstance(p, LionParams):
            beta1, beta2 = p.betas
            means = kept(self.state, "exp_avg", weights, gradients, from_zero=True)
            momenta = torch._foreach_lerp(means, gradients, 1 - beta1)
            torch._foreach_lerp_(means, gradients, 1 - beta2)
            return list(momenta)
        buffers = kept(self.state, "momentum_buffer", weights, gradients, from_zero=True)
        torch._foreach_mul_(buffers, p.momentum)
        torch._foreach_add_(buffers, gradients)
        if not p.nesterov:
            return buffers
        return list(torch._foreach_add(gradients, buffers, alpha=p.momentum))

    def _length(self, momenta: list[Tensor]) -> Tensor | None:
        """Return what a step is multiplied by beside lr; None is 1."""
        if self._params.name != "sign-gd-nonlmo" or not momenta:
            return None
        length: Tensor = torch.stack(torch._foreach_norm(momenta, 1)).sum()
        return length


def build_sign(model: nn.Module, params: SignParams | LionParams) -> SignDescent:
    """Build sign-gd, sign-gd-nonlmo or lion."""
    return SignDescent(trainable(model), params)
