"""Plans of steps on tensors that belong to no optimizer of the kernels' own."""

from __future__ import annotations

from collections import OrderedDict

import torch

from trainer.kernels.chunks import Plan, build_plan
from trainer.kernels.operands import Operands

_KEPT = 32


class Plans:
    """Plans by address: a step whose tensors lie where those of an earlier one lay builds none."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, ...], Plan] = OrderedDict()
        self._captured: list[Plan] = []

    def of(self, operands: Operands) -> Plan:
        """Return the plan of these tensors, which are laid out alike in memory.

        Raises:
            RuntimeError: a CUDA graph is captured, and no step of so many weights was taken before.
        """
        weight = operands.weights[0]
        capturing = weight.is_cuda and torch.cuda.is_current_stream_capturing()
        columns = (operands.weights, operands.gradients, *operands.states)
        key = (
            *(tensor.data_ptr() for column in columns for tensor in column),
            *(weight.numel() for weight in operands.weights),
        )
        plan = self._kept.get(key)
        if plan is None and capturing:
            plan = build_plan([operands], spare=self._spare(len(operands.weights)), capturing=True)
        elif plan is None:
            plan = self._kept[key] = build_plan([operands])
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        if capturing:
            # The graph reads the tables at each replay, long after the plan would be dropped.
            self._captured.append(plan)
        return plan

    def _spare(self, weights: int) -> torch.Tensor:
        """Take pinned memory from a plan, which goes: while capturing none can be allocated."""
        for key, plan in self._kept.items():
            if len(plan.host) == weights and all(plan is not other for other in self._captured):
                del self._kept[key]
                return plan.host
        raise RuntimeError("take a step of the same weights before capturing one")
