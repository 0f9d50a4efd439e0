from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer.kernels.operands import Operands
from trainer.kernels.plans import Plans


def operands(*sizes: int) -> Operands:
    columns = [[torch.zeros(size) for size in sizes] for _ in range(4)]
    return Operands(columns[0], columns[1], columns[2:])


def test_tensors_that_lie_where_they_lay_need_no_new_plan() -> None:
    plans, there = Plans(), operands(5, 9)
    plan = plans.of_tensors(there)
    assert plans.of_tensors(there) is plan
    moved = Operands(there.weights, [torch.zeros(5), there.gradients[1]], there.states)
    assert plans.of_tensors(moved) is not plan
    assert plans.of_tensors(moved).slots[0, 1] == moved.gradients[0].data_ptr()
    assert plans.of_tensors(there) is plan


def test_other_tensors_at_the_same_addresses_need_a_new_plan() -> None:
    plans, there = Plans(), operands(6)
    plan = plans.of_tensors(there)
    shorter = [[column[0][:4]] for column in (there.weights, there.gradients, *there.states)]
    other = plans.of_tensors(Operands(shorter[0], shorter[1], shorter[2:]))
    assert other is not plan
    assert other.slots[0, 7] == 4


def test_a_captured_step_takes_the_memory_of_a_plan_of_as_many_weights() -> None:
    plans = Plans()
    small, large = plans.of_tensors(operands(3)), plans.of_tensors(operands(3, 4))
    assert plans._spare(2) is large.host
    with pytest.raises(RuntimeError, match="take a step of the same weights before capturing one"):
        plans._spare(2)
    assert plans._spare(1) is small.host


def test_a_state_that_is_exchanged_needs_a_new_plan() -> None:
    plans, there = Plans(), operands(5, 9)
    for weight, gradient in zip(there.weights, there.gradients, strict=True):
        weight.grad = gradient
    states: dict[torch.Tensor, list[torch.Tensor]] = {}

    def made() -> list[Operands]:
        for weight in there.weights:
            states.setdefault(weight, [torch.zeros_like(weight), torch.ones_like(weight)])
        pairs = [states[weight] for weight in there.weights]
        columns = [list(column) for column in zip(*pairs, strict=True)]
        return [Operands(there.weights, there.gradients, columns)]

    def plan() -> Any:
        return plans.of([there.weights], made, lambda weight: states.get(weight, ()))

    first = plan()
    assert plan() is first
    assert len(plans) == 1
    old = states[there.weights[0]].pop()
    states[there.weights[0]].append(old.clone())
    second = plan()
    assert second is not first
    assert second.slots[0, 3] == states[there.weights[0]][1].data_ptr()
    kept = dict(states)
    states.clear()
    assert plan() is not second
    assert kept
