"""schedule-free-adamw: averages its weights instead of lowering its rate (arXiv 2405.15682).

    y = (1 - b1) z + b1 x           what the gradient g is taken at
    v <- b2 v + (1 - b2) g^2;   s = lr sqrt(1 - b2^t) min(1, t / warmup_steps)
    z <- z - s (g / (sqrt(v) + eps) + wd y)
    x <- (1 - c) x + c z,   c = s^2 / (sum of all s^2 so far)

z and x start at the weights, v at zero. x is what training is for: validate it. The weights hold y;
z and v are the state, and x = (y - (1 - b1) z) / b1. With d = g / (sqrt(v) + eps) + wd y a step is

    y <- (1 - c) y + c z - s (1 - b1 (1 - c)) d;   z <- z - s d

A non-finite gradient goes into the state: whoever steps looks first. A step never waits for the
device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainer.kernels import Backend, choose_backend
from trainer.kernels.chunks import Plan
from trainer.kernels.operands import Numbers
from trainer.optim.averages import kept
from trainer.optim.counted import CountedElementwise
from trainer.optim.groups import trainable
from trainer.optim.params import ScheduleFreeParams
from trainer.optim.scaling import Number, add_scaled, move_towards


class ScheduleFreeAdamW(CountedElementwise):
    """8 bytes of state per fp32 weight, and 4 more between :meth:`eval` and :meth:`train`.

    The kernel moves 28 bytes a weight.
    """

    COUNTERS: ClassVar[tuple[str, ...]] = ("step", "weight_sum")
    OWN_TYPES: ClassVar[Mapping[str, torch.dtype | None]] = dict.fromkeys(COUNTERS, torch.float64)

    def __init__(
        self, weights: Any, params: ScheduleFreeParams, backend: Backend = "torch"
    ) -> None:
        super().__init__(weights, params, backend)
        self._params = params
        self._stashed: dict[Tensor, Tensor] | None = None

    @torch.no_grad()
    def eval(self) -> None:
        """Put x into the weights; y waits for :meth:`train`."""
        if self._stashed is not None:
            return
        moved = [w for group in self.param_groups for w in group["params"] if self.state.get(w)]
        # A copy, since y from x and z would differ in its last bits.
        self._stashed = {weight: weight.clone() for weight in moved}
        if moved:
            bases = [self.state[weight]["z"] for weight in moved]
            torch._foreach_lerp_(moved, bases, 1 - 1 / self._params.betas[0])

    @torch.no_grad()
    def train(self) -> None:
        """Put y back, to the bit."""
        stashed, self._stashed = self._stashed, None
        if stashed:
            torch._foreach_copy_(list(stashed), list(stashed.values()))

    def step(self, closure: Any = None) -> Any:
        """Update every weight that has a gradient.

        Raises:
            RuntimeError: the weights hold x.
        """
        self._refuse_evaluated("step")
        return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Return what goes with the weights as they are in training.

        Raises:
            RuntimeError: the weights hold x.
        """
        self._refuse_evaluated("state_dict")
        return super().state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        """Load what goes with the weights as they are in training.

        Raises:
            RuntimeError: the weights hold x.
        """
        self._refuse_evaluated("load_state_dict")
        super().load_state_dict(state_dict)

    def _move(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Any], step: Number
    ) -> None:
        p, (beta1, beta2) = self._params, self._params.betas
        squares = self._zeros("exp_avg_sq", weights)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, p.eps)
        moves = list(torch._foreach_div(gradients, roots))
        if group["weight_decay"]:
            torch._foreach_add_(moves, weights, alpha=group["weight_decay"])
        bases = self._bases(weights)
        size = group["lr"] * (1 - beta2**step) ** 0.5 * _warmth(step, p.warmup_steps)
        share = _share(size, self._add("weight_sum", weights, size**2))
        move_towards(weights, bases, share)
        add_scaled(weights, moves, -size * (1 - beta1 * (1 - share)))
        add_scaled(bases, moves, -size)

    def _bases(self, weights: list[Tensor]) -> list[Tensor]:
        """Return z."""
        return kept(self.state, "z", weights, weights, from_zero=False)

    def _states(self, group: dict[str, Any], weights: list[Tensor]) -> list[list[Tensor]]:  # noqa: ARG002
        return [self._bases(weights), self._zeros("exp_avg_sq", weights)]

    def _step_triton(self, plan: Plan, clip_factor: Tensor | None) -> None:
        from trainer.kernels.elementwise_triton import step_chunks
        from trainer.kernels.numbers_triton import free_shares

        p = self._params
        for group, part in zip(self.param_groups, plan.parts, strict=True):
            if part.slots:
                numbers = Numbers(group["lr"], group["weight_decay"], *p.betas, p.eps)
                free_shares(plan, part, numbers, pace=1 / (p.warmup_steps or 1))
                step_chunks("schedule-free", plan, part, numbers, clip_factor)

    def _refuse_evaluated(self, call: str) -> None:
        if self._stashed is not None:
            raise RuntimeError(f"{call}() after eval(): the weights hold the average; call train()")


def build_schedule_free(model: nn.Module, params: ScheduleFreeParams) -> ScheduleFreeAdamW:
    """Build schedule-free-adamw.

    Raises:
        UserError: the Triton backend is asked for and cannot work.
    """
    weights = trainable(model)
    return ScheduleFreeAdamW(weights, params, choose_backend(params.backend, weights))


def _warmth(step: Number, steps: int) -> Number:
    """Return how far the learning rate has risen."""
    if not steps:
        return 1.0
    part = step / steps
    return part.clamp(max=1.0) if isinstance(part, Tensor) else min(part, 1.0)


def _share(size: Number, total: Number) -> Number:
    """Return c; a step of size 0 has none."""
    if isinstance(total, Tensor):
        return torch.where(total > 0, size**2 / total, 0.0)
    return size**2 / total if total else 0.0
