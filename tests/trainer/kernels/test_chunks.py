from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.kernels.chunks import BLOCK, CHUNK, Plan, build_plan
from trainer.kernels.operands import Operands


def operands(weights: list[Tensor]) -> Operands:
    return Operands(weights, [torch.zeros_like(weight) for weight in weights])


def of_groups(*groups: list[Tensor]) -> Plan:
    return build_plan([operands(group) for group in groups])


@given(st.lists(st.integers(0, 3 * CHUNK), min_size=1, max_size=5), st.integers(0, 5))
def test_chunks_cover_every_number_once(sizes: list[int], split: int) -> None:
    weights = [torch.empty(size) for size in sizes]
    plan = of_groups(weights[:split], weights[split:])
    slots, covered = plan.slots.tolist(), [0] * len(sizes)
    for slot, index in plan.chunks.tolist():
        assert index * CHUNK == covered[slot]
        covered[slot] += min(CHUNK, slots[slot][7] - covered[slot])
    assert covered == sizes
    assert [row[0] for row in slots] == [weight.data_ptr() for weight in weights]


@given(st.lists(st.integers(0, 3 * CHUNK), min_size=2, max_size=6), st.integers(0, 6))
def test_a_groups_part_is_its_weights_and_their_chunks(sizes: list[int], split: int) -> None:
    weights = [torch.empty(size) for size in sizes]
    plan = of_groups(weights[:split], weights[split:])
    owners = [owner for owner, _ in plan.chunks.tolist()]
    for part, group in zip(plan.parts, (weights[:split], weights[split:]), strict=True):
        assert part.slots == len(group)
        mine = owners[part.first_chunk : part.first_chunk + part.chunks]
        wanted = [
            part.first_slot + i for i, w in enumerate(group) for _ in range(-(-len(w) // CHUNK))
        ]
        assert mine == wanted


def test_a_weights_row_says_which_chunks_are_its() -> None:
    plan = of_groups([torch.zeros(CHUNK + 1), torch.zeros(0), torch.zeros(5)])
    assert plan.slots[:, 9].tolist() == [0, 2, 2]
    assert plan.slots[:, 10].tolist() == [2, 0, 1]


def test_a_tensor_off_16_bytes_is_read_number_by_number() -> None:
    memory = torch.zeros(2 * BLOCK + 1)
    plan = of_groups([memory[: 2 * BLOCK], memory[1:]])
    assert plan.slots[:, 8].tolist() == [1, 0]


def test_chunks_are_kept_where_only_addresses_change() -> None:
    first, second = (of_groups([torch.zeros(5), torch.zeros(CHUNK + 1)]) for _ in range(2))
    assert first.chunks is second.chunks
    captured = build_plan([operands([torch.zeros(9)])], capturing=True)
    assert of_groups([torch.zeros(9)]).chunks is not captured.chunks


def test_a_gradient_of_another_order_is_copied_into_the_weights() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    weight.grad = torch.arange(12.0).reshape(4, 3).t()
    plan = build_plan([Operands([weight], [weight.grad])])
    [(_, room)] = plan.copies
    assert plan.slots[0, 1] == room.data_ptr()
    plan.refresh()
    assert room.is_contiguous()
    assert torch.equal(room, weight.grad)
