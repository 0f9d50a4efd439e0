"""mars: AdamW on gradients whose variance is reduced by the step's before (arXiv 2411.10438).

    c = g_t + gamma b1 / (1 - b1) (g_t - g_(t-1));   c <- c / max(1, |c|_2), weight by weight
    m <- b1 m + (1 - b1) c;   v <- b2 v + (1 - b2) c^2
    W <- (1 - lr wd) W - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

This is the paper's MARS-AdamW in its approximate form: g_(t-1) is the gradient of the step before,
on that step's tokens, not one at the old weights on this step's. A weight's first c is its g.
Weights of fewer than two dimensions move by AdamW unless ``optimize_1d``. A non-finite gradient
goes into the state: whoever steps looks first. A step never waits for the device.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from trainer.kernels import Backend, choose_backend
from trainer.kernels.chunks import Plan
from trainer.kernels.operands import Numbers, Rule
from trainer.optim.averages import kept
from trainer.optim.counted import CountedElementwise
from trainer.optim.groups import trainable
from trainer.optim.params import MarsParams
from trainer.optim.scaling import Number

_log = logging.getLogger(__name__)


class Mars(CountedElementwise):
    """Groups with ``corrected``, 12 bytes of state per fp32 weight, or without, 8.

    The kernel moves 44 bytes of the former's, 8 of them for the norms, and 28 of the latter's.
    """

    def __init__(
        self, groups: list[dict[str, Any]], params: MarsParams, backend: Backend = "torch"
    ) -> None:
        super().__init__(groups, params, backend)
        self._params = params

    def _states(self, group: dict[str, Any], weights: list[Tensor]) -> list[list[Tensor]]:
        keys = ("exp_avg", "exp_avg_sq", *(["previous_grad"] if group["corrected"] else []))
        return [self._zeros(key, weights) for key in keys]

    def _step_triton(self, plan: Plan, clip_factor: Tensor | None) -> None:
        from trainer.kernels.elementwise_triton import step_chunks
        from trainer.kernels.numbers_triton import clip_corrected, count_steps

        p = self._params
        for group, part in zip(self.param_groups, plan.parts, strict=True):
            if not part.slots:
                continue
            rule: Rule = "mars" if group["corrected"] else "adamw"
            betas = p.betas if group["corrected"] else p.betas_1d
            rates = group["lr"], group["weight_decay"]
            numbers = Numbers(*rates, *betas, p.eps, ahead=self._ahead)
            count_steps(rule, plan, part, numbers, torch.float64)
            if rule == "mars":
                step_chunks(rule, plan, part, numbers, clip_factor, phase="sums")
                clip_corrected(plan, part)
            step_chunks(rule, plan, part, numbers, clip_factor)

    def _move(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Any], step: Number
    ) -> None:
        p = self._params
        if group["corrected"]:
            gradients, betas = self._corrected(weights, gradients), p.betas
        else:
            betas = p.betas_1d
        self._move_by_adamw(group, weights, gradients, step, betas, p.eps)

    def _corrected(self, weights: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """Return c, and keep the gradients for the next step."""
        previous = kept(self.state, "previous_grad", weights, gradients, from_zero=False)
        # g + k (g - p) = p + (1 + k) (g - p)
        corrected = list(torch._foreach_lerp(previous, gradients, 1 + self._ahead))
        torch._foreach_copy_(previous, gradients)
        norms = list(torch._foreach_norm(corrected))
        torch._foreach_clamp_min_(norms, 1.0)
        torch._foreach_div_(corrected, norms)
        return corrected

    @property
    def _ahead(self) -> float:
        """What multiplies a gradient's change."""
        beta1, _ = self._params.betas
        return self._params.gamma * beta1 / (1 - beta1)


def build_mars(model: nn.Module, params: MarsParams) -> Mars:
    """Build mars; the log says how many weights move by what.

    Raises:
        UserError: the Triton backend is asked for and cannot work.
    """
    weights = trainable(model)
    corrected = [weight for weight in weights if params.optimize_1d or weight.ndim >= 2]
    rest = [weight for weight in weights if not params.optimize_1d and weight.ndim < 2]
    _log.info("mars: %d weights by MARS, %d by AdamW", len(corrected), len(rest))
    groups: list[dict[str, Any]] = [
        {"params": corrected, "corrected": True},
        {"params": rest, "corrected": False},
    ]
    backend = choose_backend(params.backend, weights)
    return Mars([group for group in groups if group["params"]], params, backend)
