"""Clipping by the global norm, folded into the step that follows instead of a pass of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainer.kernels.layout import alike, laid_out_alike
from trainer.optim.copied import Copied


class FoldsClip(Copied):
    """An optimizer whose step multiplies the gradients by the factor that clips them."""

    _clip_factor: Tensor | None = None

    @torch.no_grad()
    def clip_grad_norm(self, limit: float) -> Tensor:
        """Clip the next step's gradients to a global norm, and return their norm before.

        As ``torch.nn.utils.clip_grad_norm_`` of all weights, but the gradients are written by the
        step at the earliest, and not at all where it reads them once. Nothing waits for the device.
        """
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

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient; clipped gradients are overwritten."""
        factor = self._take_clip_factor()
        fused = all(group.get("fused") for group in self.param_groups)
        if fused:
            self._lay_out()
        if factor is None:
            return super().step(closure)
        if not fused:
            with torch.no_grad():
                torch._foreach_mul_(self._gradients(), factor)
            return super().step(closure)
        # torch's name for what its gradient scaler would have it divide by, in fp32.
        self.grad_scale = factor.reciprocal().float()
        try:
            return super().step(closure)
        finally:
            del self.grad_scale

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


class Adam(_TorchStep, torch.optim.Adam):
    """``torch.optim.Adam`` with the clip folded in."""


class AdamW(_TorchStep, torch.optim.AdamW):
    """``torch.optim.AdamW`` with the clip folded in."""


class NAdam(_TorchStep, torch.optim.NAdam):
    """``torch.optim.NAdam`` with the interface of the others; it has no fused step to fold into."""
