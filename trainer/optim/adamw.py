"""AdamW on the project's kernels, interchangeable with ``torch.optim.AdamW``.

Its state has torch's names (``step``, ``exp_avg``, ``exp_avg_sq``) and its groups torch's keys, so
a checkpoint of either continues under the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.kernels import AdamWScalars, Backend, adamw_step
from trainer.kernels.operands import Slot


class KernelAdamW(torch.optim.AdamW):
    """AdamW whose step is one launch; 8 bytes of state per fp32 weight.

    A non-finite gradient goes into weights and moments as in torch: whoever steps looks first.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        backend: Backend,
    ) -> None:
        # fused puts the step counts on the device, where torch's own kernel wants them.
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        self._step_supports_amp_scaling = False
        self.backend = backend
        self._clip_factor: Tensor | None = None
        self._steps: dict[Tensor, int] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        clip_factor, self._clip_factor = self._clip_factor, None
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for step, slots in self._slots(group["params"]).items():
                scalars = AdamWScalars(
                    group["lr"], beta1, beta2, group["eps"], group["weight_decay"], step
                )
                adamw_step(slots, scalars, self.backend, clip_factor)
        return loss

    @torch.no_grad()
    def clip_grad_norm(self, limit: float) -> Tensor:
        """Clip the next step's gradients to a global norm, and return their norm before.

        As ``torch.nn.utils.clip_grad_norm_``, but the gradients are not written: the step
        multiplies them as it reads them.
        """
        weights = (weight for group in self.param_groups for weight in group["params"])
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self._clip_factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        return norm

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state of this class or of ``torch.optim.AdamW``, whatever its implementation."""
        groups = [{**group, "fused": True} for group in state_dict["param_groups"]]
        super().load_state_dict({"state": state_dict["state"], "param_groups": groups})
        self._steps.clear()

    def _slots(self, weights: Iterable[nn.Parameter]) -> dict[int, list[Slot]]:
        """Advance the step counts and return the weights that have gradients by their step."""
        slots: dict[int, list[Slot]] = defaultdict(list)
        counts = []
        for weight in weights:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros((), device=weight.device)
                state["exp_avg"] = torch.zeros_like(weight)
                state["exp_avg_sq"] = torch.zeros_like(weight)
            if weight not in self._steps:
                # Waits for the device, once after a checkpoint; later steps count on the host.
                self._steps[weight] = int(state["step"])
            self._steps[weight] += 1
            counts.append(state["step"])
            slot = Slot(weight, weight.grad, state["exp_avg"], state["exp_avg_sq"])
            slots[self._steps[weight]].append(slot)
        if counts:
            torch._foreach_add_(counts, 1)
        return slots
