"""Clipping by the global norm, folded into the step that follows instead of a pass of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rundir.errors import IllegalValue
from trainer.compute.startup import step_plainly
from trainer.kernels.layout import alike, laid_out_alike
from trainer.optim.averages import restored
from trainer.optim.copied import Copied


class FoldsClip(Copied):
    """An optimizer whose step multiplies the gradients by the factor that clips them."""

    OWN_TYPES: ClassVar[Mapping[str, torch.dtype | None]] = {}
    """Types of the states that do not have their weight's; None is that, but at least fp32."""

    _clip_factor: Tensor | None = None

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state from whatever device, to the bit where the weights' type is what it was."""
        super().load_state_dict(dict(state_dict))
        self.forget()
        for group, theirs in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for weight, number in zip(group["params"], theirs["params"], strict=True):
                saved = state_dict["state"].get(number, {})
                for key in self.OWN_TYPES.keys() & saved.keys():
                    # From what was saved: torch has rounded it to the weight's type.
                    self.state[weight][key] = restored(
                        saved[key], weight, self.OWN_TYPES[key], self._place(group, weight)
                    )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add weights with numbers of their own.

        Raises:
            UserError: they are to move as matrices, and one has not two dimensions.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        odd = next((weight for weight in group["params"] if weight.ndim != 2), None)
        if odd is not None and self._moves_matrices(group):
            self.param_groups.pop()
            must = "of 2 dimensions: its group moves as matrices do"
            raise IllegalValue("a weight's shape", list(odd.shape), must)

    def _moves_matrices(self, group: dict[str, Any]) -> bool:  # noqa: ARG002
        """Whether a group's weights must have two dimensions."""
        return False

    def forget(self) -> None:
        """Drop what was gathered for a step that is not taken."""
        self._clip_factor = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, and the factor that was to clip them."""
        self._clip_factor = None
        super().zero_grad(set_to_none)

    def _place(self, group: dict[str, Any], weight: Tensor) -> torch.device:  # noqa: ARG002
        """Return where the states of types of their own are kept."""
        return weight.device

    @torch.no_grad()
    def clip_grad_norm(self, limit: float) -> Tensor:
        """Clip the next step's gradients to a global norm, and return their norm before.

        As ``torch.nn.utils.clip_grad_norm_`` of all weights, but the gradients are written by the
        step at the earliest, and not at all where it reads them once. Nothing waits for the device.
        """
        self._clip_factor = None
        gradients = self._gradients()
        if not gradients:
            return torch.zeros(())
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self._clip_factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        return norm

    def _gradients(self) -> list[Tensor]:
        weights = (weight for group in self.param_groups for weight in group["params"])
        return [weight.grad for weight in weights if weight.grad is not None]

    def _take_clip_factor(self) -> Tensor | None:
        """Return what multiplies the gradients of this step alone; None is 1."""
        factor, self._clip_factor = self._clip_factor, None
        return factor


class _TorchStep(FoldsClip):
    """torch's own step: where it is fused, it scales the gradients as it reads them."""

    OWN_TYPES: ClassVar[Mapping[str, torch.dtype | None]] = {
        "step": torch.float32,
        "mu_product": torch.float32,
    }

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient; clipped gradients are overwritten."""
        factor = self._take_clip_factor()
        fused = all(group.get("fused") for group in self.param_groups)
        if fused:
            self._lay_out()
        if factor is None:
            return step_plainly(super().step, closure)
        gradients = self._gradients()
        # torch's fused steps take the factor in fp32.
        if not fused or any(gradient.dtype == torch.float64 for gradient in gradients):
            with torch.no_grad():
                torch._foreach_mul_(gradients, factor)
            return step_plainly(super().step, closure)
        # torch's name for what its gradient scaler would have it divide by, in fp32.
        self.grad_scale = factor.reciprocal().float()
        try:
            return step_plainly(super().step, closure)
        finally:
            del self.grad_scale

    def _place(self, group: dict[str, Any], weight: Tensor) -> torch.device:
        """Return where torch wants its numbers: unfused steps read them on the host."""
        on_device = group.get("fused") or group.get("capturable")
        return weight.device if on_device else torch.device("cpu")

    def _lay_out(self) -> None:
        """Replace gradients of another order in memory than their weights', which fused steps need.

        A closure may draw others: they come from autograd, which gives them the weights' order.
        """
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and not alike(weight, weight.grad):
                    weight.grad = laid_out_alike(weight, weight.grad)


class SGD(_TorchStep, torch.optim.SGD):
    """``torch.optim.SGD`` with the clip folded in."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient; clipped gradients are overwritten."""
        factor, loss = self._take_clip_factor(), None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for waiting in self._turns():
            gradients = [weight.grad for weight in waiting]
            for weight in waiting:
                weight.grad = None
            self._clip_factor = factor
            super().step()
            for weight, gradient in zip(waiting, gradients, strict=True):
                weight.grad = gradient
        return loss

    def _turns(self) -> list[list[Tensor]]:
        """Return the weights that wait in each turn: one, or two where some momenta are missing.

        torch's fused step starts all momenta of a call or none.
        """
        moving = [group for group in self.param_groups if group["momentum"] and group["fused"]]
        weights = [w for group in moving for w in group["params"] if w.grad is not None]
        begun: list[Tensor] = []
        fresh: list[Tensor] = []
        for weight in weights:
            missing = self.state.get(weight, {}).get("momentum_buffer") is None
            (fresh if missing else begun).append(weight)
        if not (begun and fresh):
            return [[]]
        every = (weight for group in self.param_groups for weight in group["params"])
        later = set(begun)
        return [begun, [weight for weight in every if weight not in later]]


class Adam(_TorchStep, torch.optim.Adam):
    """``torch.optim.Adam`` with the clip folded in."""


class AdamW(_TorchStep, torch.optim.AdamW):
    """``torch.optim.AdamW`` with the clip folded in."""


class NAdam(_TorchStep, torch.optim.NAdam):
    """``torch.optim.NAdam`` with the interface of the others; it has no fused step to fold into."""
