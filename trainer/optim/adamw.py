"""The Adams on the project's kernels, each interchangeable with torch.optim's.

Their states have torch's names (``step``, ``exp_avg``, ``exp_avg_sq``, ``mu_product``) and their
groups torch's keys, so a checkpoint of either continues under the other. The formulas are
:mod:`trainer.kernels.adam`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainer.kernels import Backend
from trainer.kernels.adam import adam_step_torch
from trainer.kernels.chunks import Plan
from trainer.kernels.nadam import nadam_step_cpu
from trainer.kernels.operands import Numbers, Operands, Rule
from trainer.optim.averages import kept
from trainer.optim.elementwise import Elementwise


class _KernelAdam(Elementwise):
    """Two moments and a count: 8 bytes of state per fp32 weight.

    A non-finite gradient goes into weights and moments as in torch: whoever steps looks first.
    """

    def _rule(self, group: dict[str, Any]) -> Rule:
        raise NotImplementedError

    def _operands(self, group: dict[str, Any]) -> Operands:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        gradients = [weight.grad for weight in weights]
        nadam = self._rule(group) in {"nadam", "nadamw"}
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros((), device=weight.device)
                if nadam:
                    state["mu_product"] = torch.ones((), device=weight.device)
        return Operands(
            weights,
            gradients,
            [
                kept(self.state, name, weights, weights, from_zero=True)
                for name in ("exp_avg", "exp_avg_sq")
            ],
            [self.state[weight]["step"] for weight in weights],
            [self.state[weight]["mu_product"] for weight in weights] if nadam else (),
        )

    def _numbers(self, group: dict[str, Any]) -> Numbers:
        return Numbers(
            group["lr"],
            group["weight_decay"],
            group["betas"][0],
            group["betas"][1],
            group["eps"],
            momentum_decay=group.get("momentum_decay", 0.0),
        )

    def _step_torch(self, groups: Sequence[Operands], clip_factor: Tensor | None) -> None:
        for group, operands in zip(self.param_groups, groups, strict=True):
            if operands.weights:
                numbers = self._numbers(group)
                adam_step_torch(self._rule(group), operands, numbers, clip_factor)

    def _step_triton(self, plan: Plan, clip_factor: Tensor | None) -> None:
        from trainer.kernels.elementwise_triton import step_chunks
        from trainer.kernels.numbers_triton import count_steps

        for group, part in zip(self.param_groups, plan.parts, strict=True):
            if part.slots:
                rule, numbers = self._rule(group), self._numbers(group)
                count_steps(rule, plan, part, numbers)
                step_chunks(rule, plan, part, numbers, clip_factor)


class KernelAdam(_KernelAdam, torch.optim.Adam):
    """Adam, whose weight decay is added to the gradient."""

    def __init__(self, params: Iterable[Any], *, backend: Backend, **options: Any) -> None:
        """Build it; ``options`` are torch's: lr, betas, eps and weight_decay."""
        # fused puts the step counts on the device, where torch's own kernel wants them.
        super().__init__(params, **options, fused=True)
        self._step_supports_amp_scaling = False
        self.backend = backend

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state of this class or of torch's, whatever its implementation."""
        groups = [{**group, "fused": True} for group in state_dict["param_groups"]]
        super().load_state_dict({"state": state_dict["state"], "param_groups": groups})

    def _rule(self, group: dict[str, Any]) -> Rule:  # noqa: ARG002 - NAdam's depends on it
        return "adam"


class KernelAdamW(KernelAdam, torch.optim.AdamW):
    """AdamW."""

    def _rule(self, group: dict[str, Any]) -> Rule:  # noqa: ARG002
        return "adamw"


class KernelNAdam(_KernelAdam, torch.optim.NAdam):
    """NAdam, and NAdamW with ``decoupled_weight_decay``."""

    OWN_TYPES: ClassVar[Mapping[str, torch.dtype | None]] = {
        "step": torch.float32,
        "mu_product": torch.float32,
    }

    def __init__(self, params: Iterable[Any], *, backend: Backend, **options: Any) -> None:
        """Build it; ``options`` are torch's."""
        super().__init__(params, **options)
        self.backend = backend

    def _step_torch(self, groups: Sequence[Operands], clip_factor: Tensor | None) -> None:
        for group, operands in zip(self.param_groups, groups, strict=True):
            if operands.weights:
                numbers = self._numbers(group)
                nadam_step_cpu(self._rule(group), operands, numbers, clip_factor)

    def _rule(self, group: dict[str, Any]) -> Rule:
        return "nadamw" if group["decoupled_weight_decay"] else "nadam"
