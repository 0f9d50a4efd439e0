"""The plans of an optimizer's steps, kept by where the tensors lie."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.kernels.chunks import Plan, build_plan
from trainer.kernels.operands import Operands

_KEPT = 8

MADE_BEFORE = (
    "the first step of a weight makes its state, and every replay of a graph would do so again: "
    "take a step before capturing one"
)
"""Why a first step cannot be captured."""


class Plans:
    """A step whose gradients lie where they lay does nothing by tensor but look."""

    def __init__(self, most: int = _KEPT) -> None:
        """Keep ``most`` of them, beside those that graphs need."""
        self._most = most
        self._kept: OrderedDict[tuple[Any, ...], Plan] = OrderedDict()
        self._captured: list[Plan] = []

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> tuple[type[Plans], tuple[int]]:
        """Copy none of them: a copy's tensors lie elsewhere."""
        return type(self), (self._most,)

    def forget(self) -> None:
        """Drop all that no graph needs."""
        self._kept.clear()

    def of(
        self,
        groups: Sequence[Sequence[Tensor]],
        operands: Callable[[], list[Operands]],
        states: Callable[[Tensor], Iterable[Tensor]],
    ) -> Plan | None:
        """Return where this step's tensors lie, or None where there is no gradient.

        Args:
            groups: the weights of each; those without a gradient do not count.
            operands: makes those of the groups, with the states where missing.
            states: what is kept for a weight and in the plan; empty where nothing is.

        Raises:
            RuntimeError: a graph is captured, and a state is missing or no plan was kept of as many
                weights.
        """
        key = _addresses(groups, states)
        if not key:
            return None
        if key in self._kept:
            return self._at(key, operands, capturing=_captures(groups))
        require_states(groups, lambda weight: any(True for _ in states(weight)))
        made = operands()
        # With the states that this made: none of them may pass for one that was there before.
        key = _addresses(groups, states)
        return self._at(key, lambda: made, capturing=_captures(groups))

    def of_tensors(self, operands: Operands) -> Plan:
        """Return where these tensors lie, which are in one order in memory.

        Raises:
            RuntimeError: a graph is captured, and no plan was kept of as many weights.
        """
        columns = (operands.weights, operands.gradients, *operands.states)
        key = (
            *(tensor.data_ptr() for column in columns for tensor in column),
            *(weight.numel() for weight in operands.weights),
        )
        return self._at(key, lambda: [operands], capturing=_captures([operands.weights]))

    def _at(
        self, key: tuple[Any, ...], operands: Callable[[], list[Operands]], *, capturing: bool
    ) -> Plan:
        plan = self._kept.get(key)
        if plan is None and capturing:
            those = operands()
            spare = self._spare(sum(len(group.weights) for group in those))
            plan = build_plan(those, spare=spare, capturing=True)
        elif plan is None:
            plan = self._kept[key] = build_plan(operands())
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        if capturing:
            # The graph reads the tables at each replay, long after the plan would be dropped.
            self._captured.append(plan)
        plan.refresh()
        return plan

    def _spare(self, weights: int) -> Tensor:
        """Take pinned memory from a plan, which goes, or two graphs would read it."""
        for key, plan in self._kept.items():
            if len(plan.host) == weights:
                del self._kept[key]
                return plan.host
        raise RuntimeError("take a step of the same weights before capturing one")


def require_states(groups: Sequence[Sequence[Tensor]], has_state: Callable[[Tensor], bool]) -> None:
    """Refuse to capture the first step of a weight.

    Raises:
        RuntimeError: a graph is captured, and the state of a weight with a gradient is missing.
    """
    weights = (weight for group in groups for weight in group if weight.grad is not None)
    if _captures(groups) and not all(map(has_state, weights)):
        raise RuntimeError(MADE_BEFORE)


def _addresses(
    groups: Sequence[Sequence[Tensor]], states: Callable[[Tensor], Iterable[Tensor]]
) -> tuple[Any, ...]:
    """Return what identifies this step's weights, gradients and states; 1 us a weight."""
    key: list[Any] = []
    for group in groups:
        for weight in group:
            gradient = weight.grad
            if gradient is not None:
                key += (weight.data_ptr(), gradient.data_ptr(), gradient.stride())
                key += [kept.data_ptr() for kept in states(weight)]
    return tuple(key)


def _captures(groups: Sequence[Sequence[Tensor]]) -> bool:
    weight = next((weight for group in groups for weight in group), None)
    return weight is not None and weight.is_cuda and torch.cuda.is_current_stream_capturing()
