"""Optimizers whose step depends on its number, which every weight has of its own.

A weight without gradient takes no step, so that numbers may differ within a group. They are kept on
the device for checkpoints and CUDA graphs, and on the host as well, so that weights whose numbers
agree share their bias corrections and a step launches little and waits for nothing.

From the first step that is captured, or whose ``lr`` is a tensor, only the device's numbers count:
a captured step counts as it is replayed, and reads ``lr`` from its tensor. The kernels know no
others.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainer.kernels import AdamWScalars, Backend, adamw_step
from trainer.kernels.adam import clipped
from trainer.kernels.operands import Operands, Slot
from trainer.kernels.plans import require_states
from trainer.optim.averages import kept, kept_scalars, unbiased_roots
from trainer.optim.clipping import FoldsClip
from trainer.optim.elementwise import Elementwise
from trainer.optim.params import OptimizerParams
from trainer.optim.scaling import Number, each


class CountsSteps(FoldsClip):
    """Keeps the numbers, on the host and the device."""

    COUNTERS: ClassVar[tuple[str, ...]] = ("step",)
    """Keys of the numbers, fp64 scalars, that a weight's steps add up in its state."""
    OWN_TYPES: ClassVar[Mapping[str, torch.dtype | None]] = {"step": torch.float64}

    def __init__(self, groups: Any, lr: float, weight_decay: float) -> None:
        self._on_host: dict[Tensor, dict[str, float]] = defaultdict(dict)
        self._device_counts = False
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state; counters on a device are waited for."""
        super().load_state_dict(state_dict)
        weights = chain.from_iterable(group["params"] for group in self.param_groups)
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        self._on_host.clear()
        for weight, number in zip(weights, numbers, strict=True):
            saved = state_dict["state"].get(number, {})
            for key in self.COUNTERS:
                if key in saved:
                    self._on_host[weight][key] = float(saved[key])

    def _add(self, key: str, weights: list[Tensor], amount: Number) -> Number:
        """Add to a counter of a batch and return what it is then."""
        counters = kept_scalars(self.state, key, weights, torch.float64)
        torch._foreach_add_(counters, each(amount, counters))
        if self._device_counts or isinstance(amount, Tensor):
            return torch.stack(counters)
        total = self._on_host[weights[0]].get(key, 0.0) + amount
        for weight in weights:
            self._on_host[weight][key] = total
        return total

    def _batches(self, weights: list[Tensor]) -> list[list[Tensor]]:
        """Return weights whose counters agree, or all where only the device knows."""
        if self._device_counts:
            return [weights] if weights else []
        batches: dict[tuple[float, ...], list[Tensor]] = defaultdict(list)
        for weight in weights:
            counts = self._on_host[weight]
            batches[tuple(counts.get(key, 0.0) for key in self.COUNTERS)].append(weight)
        return list(batches.values())

    def _look_where_to_count(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        require_states([weights], lambda weight: bool(self.state.get(weight)))
        capturing = weights[0].is_cuda and torch.cuda.is_current_stream_capturing()
        self._device_counts |= capturing or isinstance(group["lr"], Tensor)

    def _latest(self, weights: list[Tensor]) -> Number:
        """Return the number of the weights' last step, where the host can't tell one for each."""
        counts = {self._on_host[weight].get("step") for weight in weights}
        [count, *others] = counts
        if self._device_counts or others or count is None:
            return torch.stack([self.state[weight]["step"] for weight in weights])
        return count


class CountedOptimizer(CountsSteps):
    """Weights of a group whose counters agree move together."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every weight that has a gradient.

        Raises:
            RuntimeError: the first step of a weight is captured in a CUDA graph.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_groups(self._take_clip_factor())
        return loss

    def _step_groups(self, clip_factor: Tensor | None) -> None:
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._look_where_to_count(group, weights)
            for batch in self._batches(weights):
                gradients: list[Any] = [weight.grad for weight in batch]
                gradients = clipped(gradients, clip_factor)
                self._move(group, batch, gradients, self._add("step", batch, 1.0))

    @abstractmethod
    def _move(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Any], step: Number
    ) -> None:
        """Take the weights' step with this number, counted from 1."""

    def _move_by_adamw(
        self,
        group: dict[str, Any],
        weights: list[Tensor],
        gradients: list[Tensor],
        step: Number,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """Take a step of AdamW."""
        means, squares = self._zeros("exp_avg", weights), self._zeros("exp_avg_sq", weights)
        slots = list(map(Slot, weights, gradients, means, squares))
        scalars = AdamWScalars(group["lr"], *betas, eps, group["weight_decay"], step)
        adamw_step(slots, scalars, "torch")

    def _roots(self, weights: list[Tensor], step: Number, beta: float, eps: float) -> list[Tensor]:
        """Return sqrt(v / (1 - b^t)) + eps, v the averages of the gradients' squares."""
        return unbiased_roots(self._zeros("exp_avg_sq", weights), beta, step, eps)

    def _zeros(self, key: str, weights: list[Tensor]) -> list[Tensor]:
        """Return what is kept under ``key``, which starts at zero."""
        return kept(self.state, key, weights, weights, from_zero=True)


class CountedElementwise(CountedOptimizer, Elementwise):
    """Steps every number by itself, by the kernels or as above, to the same state."""

    def __init__(self, groups: Any, params: OptimizerParams, backend: Backend) -> None:
        super().__init__(groups, params.lr, params.weight_decay)
        self.backend = backend

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient.

        Raises:
            RuntimeError: the first step of a weight is captured in a CUDA graph.
        """
        return Elementwise.step(self, closure)

    def _operands(self, group: dict[str, Any]) -> Operands:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        gradients = [weight.grad for weight in weights]
        if self.backend == "torch":
            return Operands(weights, gradients)
        counters = (kept_scalars(self.state, key, weights, torch.float64) for key in self.COUNTERS)
        return Operands(weights, gradients, self._states(group, weights), *counters)

    @abstractmethod
    def _states(self, group: dict[str, Any], weights: list[Tensor]) -> list[list[Tensor]]:
        """Return what the kernel keeps for a group's weights, made where missing."""

    def _step_torch(
        self,
        groups: Sequence[Operands],  # noqa: ARG002 - of one count, that is not a group's
        clip_factor: Tensor | None,
    ) -> None:
        self._step_groups(clip_factor)
