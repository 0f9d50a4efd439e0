from __future__ import annotations

import random
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from trainer.optim import moments as module
from trainer.optim.gram import gram, symmetric
from trainer.optim.moments import InputMoments, Sum, stacked_means


def layer_and_moments(
    part: float | None = None, *, whole: bool = True
) -> tuple[nn.Linear, InputMoments]:
    layer = nn.Linear(3, 2).double()
    moments = InputMoments(part, whole=whole)
    moments.watch(layer)
    return layer, moments


def layers_and_moments(count: int, size: int = 3) -> tuple[list[nn.Linear], InputMoments]:
    layers = [nn.Linear(size, 2).double() for _ in range(count)]
    moments = InputMoments()
    for layer in layers:
        moments.watch(layer)
    return layers, moments


def mean(moments: InputMoments, layer: nn.Linear) -> torch.Tensor:
    return symmetric(stacked_means([moments.of(layer.weight)])[0])[0]


def batches(count: int, rows: int = 6, size: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 2, rows // 2, size)
    return list(torch.randn(shape, generator=generator, dtype=torch.float64))


def second_moment(*inputs: torch.Tensor) -> torch.Tensor:
    rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs])
    return torch.stack([torch.outer(row, row) for row in rows]).mean(0)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[torch.Tensor]]:
    """Every X^T X that is computed in the test."""
    made: list[weakref.ref[torch.Tensor]] = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        product = gram(x)
        made.append(weakref.ref(product))
        return product

    monkeypatch.setattr(module, "gram", counted)
    return made


def test_micro_batches_of_any_size_are_averaged_by_their_rows() -> None:
    layer, moments = layer_and_moments()
    first, second = batches(1, 6)[0], batches(1, 10)[0]
    layer(first)
    layer(second)
    torch.testing.assert_close(mean(moments, layer), second_moment(first, second))


def test_only_training_with_gradients_counts() -> None:
    layer, moments = layer_and_moments()
    x, y = batches(2)
    layer(x)
    with torch.no_grad():
        layer(y)
    layer.eval()
    layer(y)
    torch.testing.assert_close(mean(moments, layer), second_moment(x))


def test_reset_forgets_and_a_missing_input_is_said() -> None:
    layer, moments = layer_and_moments()
    with pytest.raises(RuntimeError, match="saw no input in training mode"):
        moments.of(layer.weight)
    layer(batches(1)[0])
    with pytest.raises(RuntimeError, match="saw no input in training mode"):
        moments.of(nn.Parameter(layer.weight.detach()))  # of no layer that is watched
    moments.reset()
    with pytest.raises(RuntimeError, match="saw no input in training mode"):
        moments.of(layer.weight)
    y = batches(2)[1]
    layer(y)
    torch.testing.assert_close(mean(moments, layer), second_moment(y))


def test_the_hook_passes_over_a_layer_that_it_does_not_watch() -> None:
    """As one that was put in a watched layer's place with its hooks."""
    layer, moments = layer_and_moments()
    x, y = batches(2)
    other = nn.Linear(layer.in_features, 2, dtype=x.dtype)
    moments._before_forward(other, (y,))
    layer(x)
    torch.testing.assert_close(mean(moments, layer), second_moment(x))


def test_a_part_as_whole_micro_batches_takes_the_first_of_each_few() -> None:
    layer, moments = layer_and_moments(0.5)
    inputs = batches(5)
    for x in inputs:
        layer(x)
    torch.testing.assert_close(mean(moments, layer), second_moment(*inputs[::2]))
    moments.reset()
    layer(inputs[3])
    torch.testing.assert_close(mean(moments, layer), second_moment(inputs[3]))


def test_a_part_as_rows_takes_the_first_of_every_micro_batch() -> None:
    layer, moments = layer_and_moments(0.5, whole=False)
    inputs = batches(2)
    for x in inputs:
        layer(x)
    expected = second_moment(*(x.reshape(-1, 3)[:3] for x in inputs))
    torch.testing.assert_close(mean(moments, layer), expected)


@pytest.mark.parametrize("values", [{"part": 0.5}, {"part": 0.4, "whole": False}], ids=str)
def test_a_part_of_a_shared_input_is_the_same_for_all_of_its_layers(
    values: dict[str, float], products: list[object]
) -> None:
    moments = InputMoments(values["part"], whole="whole" not in values)
    layers = [nn.Linear(3, 2).double() for _ in range(3)]
    for layer in layers:
        moments.watch(layer)
    inputs = batches(4)
    for x in inputs:
        for layer in layers:
            layer(x)
    taken = [x.reshape(-1, 3)[:2] for x in inputs] if "whole" in values else inputs[::2]
    assert len(products) == len(taken)
    for layer in layers:
        assert moments.of(layer.weight) is moments.of(layers[0].weight)
        torch.testing.assert_close(mean(moments, layer), second_moment(*taken))


def test_half_precision_inputs_are_summed_in_fp32() -> None:
    layer = nn.Linear(3, 2).to(torch.bfloat16)
    moments = InputMoments()
    moments.watch(layer)
    x = batches(1)[0].to(torch.bfloat16)
    layer(x)
    ours = mean(moments, layer)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), second_moment(x.double()), rtol=1e-6, atol=0)


def test_a_vector_is_one_row() -> None:
    layer, moments = layer_and_moments()
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    layer(x)
    torch.testing.assert_close(mean(moments, layer), torch.outer(x, x))


def test_layers_that_see_the_same_tensors_share_one_sum_and_one_product_each(
    products: list[weakref.ref[torch.Tensor]],
) -> None:
    (query, key, value, alone), moments = layers_and_moments(4)
    inputs = batches(3)
    for x in inputs:
        alone(query(x).repeat(1, 1, 2)[..., :3] + key(x).sum() + value(x).sum())
    assert moments.of(query.weight) is moments.of(key.weight) is moments.of(value.weight)
    assert moments.of(alone.weight) is not moments.of(query.weight)
    torch.testing.assert_close(mean(moments, key), second_moment(*inputs))
    assert len(products) == 6
    # What is in memory now: one sum for each of the two inputs.
    assert sum(product() is not None for product in products) == 2


def test_layers_between_those_that_share_do_not_part_them() -> None:
    (first, between, last), moments = layers_and_moments(3)
    for x, y in zip(batches(2), batches(4)[2:], strict=True):
        first(x)
        between(y)
        last(x)
    assert moments.of(first.weight) is moments.of(last.weight)
    assert moments.of(first.weight) is not moments.of(between.weight)


def test_a_view_of_all_of_a_tensor_is_that_tensor() -> None:
    (first, last), moments = layers_and_moments(2)
    x = batches(1)[0]
    first(x)
    last(x.detach())
    assert moments.of(first.weight) is moments.of(last.weight)


def test_a_tensor_changed_between_two_layers_is_another() -> None:
    (first, last), moments = layers_and_moments(2)
    x = batches(1)[0]
    before = x.clone()
    first(x)
    last(x.mul_(2))
    torch.testing.assert_close(mean(moments, first), second_moment(before))
    torch.testing.assert_close(mean(moments, last), second_moment(2 * before))


def test_another_tensor_at_the_address_of_a_freed_one_is_another() -> None:
    (first, last), moments = layers_and_moments(2, size=64)
    addresses = set()
    for seed in range(10):
        moments.reset()
        x = torch.full((64, 64), 1.0 + seed, dtype=torch.float64)
        addresses.add(x.data_ptr())
        first(x)
        del x
        y = torch.full((64, 64), -0.5, dtype=torch.float64)
        addresses.add(y.data_ptr())
        last(y)
        torch.testing.assert_close(mean(moments, last), second_moment(y))
    assert len(addresses) < 20, "no address came back, and the test has tested nothing"


@pytest.mark.parametrize("seed", range(30))
def test_whoever_shares_with_whom_the_sums_are_to_the_bit_those_of_each_alone(seed: int) -> None:
    draw = random.Random(seed)
    layers, moments = layers_and_moments(draw.randint(2, 5))
    alone = {layer: InputMoments() for layer in layers}
    for layer, own in alone.items():
        own.watch(layer)
    for _ in range(3):
        for x in batches(draw.randint(1, 4)):
            seen = [x, x.clone(), 2 * x]
            likely = draw.choice([1, 5, 50])
            for layer in draw.choices(layers, k=draw.randint(1, 8)):
                layer(draw.choices(seen, weights=[likely, 1, 1])[0])
        used = [layer for layer in layers if moments._batches[layer.weight]]
        for layer in used:
            ours, theirs = moments.of(layer.weight), alone[layer].of(layer.weight)
            assert ours.rows == theirs.rows
            assert ours.total_NN is not None
            assert theirs.total_NN is not None
            assert torch.equal(ours.total_NN, theirs.total_NN)
        for each in (moments, *alone.values()):
            each.reset()


def test_layers_of_one_weight_have_one_sum() -> None:
    (first, second), _ = layers_and_moments(2)
    second.weight = first.weight
    moments = InputMoments()
    moments.watch(first)
    moments.watch(second)
    x, y = batches(2)
    first(x)
    second(y)
    torch.testing.assert_close(mean(moments, first), second_moment(x, y))


def test_sums_of_several_sizes_come_back_in_stacks_by_size() -> None:
    moments = InputMoments()
    layers = [nn.Linear(size, 2).double() for size in (3, 3, 5, 5, 5, 3)]
    inputs = [batches(1, 4 + 2 * i, layer.in_features)[0] for i, layer in enumerate(layers)]
    for layer in layers:
        moments.watch(layer)
    for layer, x in zip(layers, inputs, strict=True):
        layer(x)
    stacks = stacked_means([moments.of(layer.weight) for layer in layers])
    assert [stack.shape for stack in stacks] == [(2, 3, 3), (3, 5, 5), (1, 3, 3)]
    found = [one for stack in stacks for one in symmetric(stack)]
    for ours, x in zip(found, inputs, strict=True):
        torch.testing.assert_close(ours, second_moment(x))


def _rank(rank: int, address: str) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    messages = []
    reduce = dist.all_reduce
    dist.all_reduce = lambda tensor: messages.append(tensor.numel()) or reduce(tensor)
    (query, key, alone), moments = layers_and_moments(3)
    inputs, others = [batches(1, 6)[0], batches(1, 10)[0]], batches(4)[2:]
    query(inputs[rank])
    key(inputs[rank])
    alone(others[rank])
    assert moments.of(query.weight) is moments.of(key.weight)
    (stack,) = stacked_means([moments.of(query.weight), moments.of(alone.weight)])
    shared, own = symmetric(stack)
    torch.testing.assert_close(shared, second_moment(*inputs))
    torch.testing.assert_close(own, second_moment(*others))
    assert messages == [2 * 9 + 2], "one message of two sums and two counts"
    dist.destroy_process_group()


def test_ranks_of_a_process_group_share_their_inputs_in_one_message(tmp_path: Path) -> None:
    spawn(_rank, args=(f"file://{tmp_path}/rendezvous",), nprocs=2)  # type: ignore[no-untyped-call]


def test_under_autocast_a_sum_is_of_what_the_layer_multiplies() -> None:
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        total, double = (Sum(None, 0).after(each, 10).total_NN for each in (x, x.double()))
    assert total is not None
    assert total.dtype == torch.float32
    rounded = x.bfloat16().reshape(-1, 4)
    assert torch.equal(symmetric(total), symmetric(gram(rounded)))
    assert not torch.equal(symmetric(total), symmetric(gram(x.reshape(-1, 4))))
    assert double is not None
    assert torch.equal(symmetric(double), symmetric(gram(x.double().reshape(-1, 4))))
