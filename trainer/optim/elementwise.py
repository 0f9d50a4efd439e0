"""Optimizers that step every number by itself: one launch over all weights, or the torch twin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainer.kernels import Backend
from trainer.kernels.chunks import Plan
from trainer.kernels.operands import Operands
from trainer.kernels.plans import Plans, require_states
from trainer.optim.clipping import FoldsClip


class Elementwise(FoldsClip):
    """A step that never waits for the device, and that a CUDA graph can capture after a first one.

    That first one must be of the kind to be captured: with the clip or without, with ``lr`` on the
    device or not. A captured step counts as it is replayed; what is to change from replay to replay
    must be a tensor on the device: ``group["lr"]``, and the loss where a step looks at it. Where
    ``lr`` is a number it may change between steps, and nothing is compiled anew.
    """

    OWN_TYPES: ClassVar[Mapping[str, torch.dtype | None]] = {"step": torch.float32}
    backend: Backend = "torch"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient.

        Raises:
            RuntimeError: the first step of a weight is captured in a CUDA graph.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        require_states([group["params"] for group in self.param_groups], self._has_state)
        clip_factor = self._take_clip_factor()
        if self.backend == "torch":
            operands = [self._operands(group) for group in self.param_groups]
            self._step_torch(operands, clip_factor)
        elif (plan := self._plan()) is not None:
            self._step_triton(plan, clip_factor)
        return loss

    @torch.no_grad()
    def clip_grad_norm(self, limit: float) -> Tensor:
        """Clip the next step's gradients to a global norm, and return their norm before.

        As ``torch.nn.utils.clip_grad_norm_``, but the gradients are not written: the step
        multiplies them as it reads them.
        """
        plan = None if self.backend == "torch" else self._plan()
        if plan is None:
            return super().clip_grad_norm(limit)
        from trainer.kernels.norm_triton import clip_triton

        norm, self._clip_factor = clip_triton(plan, limit)
        return norm

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the state of either backend, and of torch's optimizer where it has this one."""
        super().load_state_dict(state_dict)
        self._plans.forget()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add weights with numbers of their own."""
        super().add_param_group(param_group)
        self._plans.forget()

    def _operands(self, group: dict[str, Any]) -> Operands:
        """Return a group's weights that have gradients and their states, made where missing."""
        raise NotImplementedError

    def _step_torch(self, groups: Sequence[Operands], clip_factor: Tensor | None) -> None:
        """Take the step of these groups, which are ``param_groups``'s; some may be empty."""
        raise NotImplementedError

    def _step_triton(self, plan: Plan, clip_factor: Tensor | None) -> None:
        """Take the step of the groups of a plan, which are ``param_groups``'s."""
        raise NotImplementedError

    def _plan(self) -> Plan | None:
        """Return where this step's tensors lie; None where there is no gradient."""
        return self._plans.of(
            [group["params"] for group in self.param_groups],
            lambda: [self._operands(group) for group in self.param_groups],
            self._states_of,
        )

    def _has_state(self, weight: Tensor) -> bool:
        return bool(self.state.get(weight))

    def _states_of(self, weight: Tensor) -> Iterable[Tensor]:
        found: Mapping[str, Tensor] = self.state.get(weight, {})
        return found.values()

    @property
    def _plans(self) -> Plans:
        plans: Plans = self.__dict__.setdefault("_kept_plans", Plans())
        return plans
