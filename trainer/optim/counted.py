"""Optimizers that count each weight's steps, for their bias corrections and schedules.

A weight without gradient takes no step, so that counts may differ within a group. Counts are kept
on the host: a step never waits for the device, and a captured CUDA graph repeats the very step that
was captured.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from trainer.kernels import AdamWScalars, adamw_step
from trainer.kernels.operands import Slot
from trainer.optim.averages import kept


class CountedOptimizer(torch.optim.Optimizer):
    """Weights of a group that have taken equally many steps move together."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for step, weights in self._counted(group["params"]).items():
                gradients = [weight.grad for weight in weights if weight.grad is not None]
                self._move(group, weights, gradients, step)
        return loss

    @abstractmethod
    def _move(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], step: int
    ) -> None:
        """Take the weights' step with this number, counted from 1."""

    def _move_by_adamw(
        self,
        group: dict[str, Any],
        weights: list[Tensor],
        gradients: list[Tensor],
        step: int,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        means, squares = self._zeros("exp_avg", weights), self._zeros("exp_avg_sq", weights)
        slots = [Slot(*columns) for columns in zip(weights, gradients, means, squares, strict=True)]
        scalars = AdamWScalars(group["lr"], *betas, eps, group["weight_decay"], step)
        adamw_step(slots, scalars, "torch")

    def _zeros(self, key: str, weights: list[Tensor]) -> list[Tensor]:
        """Return what is kept under ``key``, which starts at zero."""
        return kept(self.state, key, weights, weights, from_zero=True)

    def _counted(self, weights: Iterable[Tensor]) -> dict[int, list[Tensor]]:
        """Count this step and return the weights that have gradients by their count."""
        batches: dict[int, list[Tensor]] = defaultdict(list)
        for weight in weights:
            if weight.grad is not None:
                state = self.state[weight]
                state["step"] = state.get("step", 0) + 1
                batches[state["step"]].append(weight)
        return batches
