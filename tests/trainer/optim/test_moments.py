from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from trainer.optim.moments import InputMoment


def layer_and_moment(
    part: float | None = None, *, whole: bool = True
) -> tuple[nn.Linear, InputMoment]:
    layer = nn.Linear(3, 2).double()
    moment = InputMoment(part, whole=whole)
    moment.watch(layer)
    return layer, moment


def batches(count: int, rows: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 2, rows // 2, 3)
    return list(torch.randn(shape, generator=generator, dtype=torch.float64))


def second_moment(*inputs: torch.Tensor) -> torch.Tensor:
    rows = torch.cat([x.reshape(-1, 3) for x in inputs])
    return torch.stack([torch.outer(row, row) for row in rows]).mean(0)


def test_micro_batches_of_any_size_are_averaged_by_their_rows() -> None:
    layer, moment = layer_and_moment()
    first, second = batches(1, 6)[0], batches(1, 10)[0]
    layer(first)
    layer(second)
    torch.testing.assert_close(moment.mean(), second_moment(first, second))


def test_only_training_with_gradients_counts() -> None:
    layer, moment = layer_and_moment()
    x, y = batches(2)
    layer(x)
    with torch.no_grad():
        layer(y)
    layer.eval()
    layer(y)
    torch.testing.assert_close(moment.mean(), second_moment(x))


def test_reset_forgets_and_a_missing_input_is_said() -> None:
    layer, moment = layer_and_moment()
    with pytest.raises(RuntimeError, match="saw no input in training mode"):
        moment.mean()
    layer(batches(1)[0])
    moment.reset()
    with pytest.raises(RuntimeError, match="saw no input in training mode"):
        moment.mean()
    y = batches(2)[1]
    layer(y)
    torch.testing.assert_close(moment.mean(), second_moment(y))


def test_a_part_as_whole_micro_batches_takes_the_first_of_each_few() -> None:
    layer, moment = layer_and_moment(0.5)
    inputs = batches(5)
    for x in inputs:
        layer(x)
    torch.testing.assert_close(moment.mean(), second_moment(*inputs[::2]))
    moment.reset()
    layer(inputs[3])
    torch.testing.assert_close(moment.mean(), second_moment(inputs[3]))


def test_a_part_as_rows_takes_the_first_of_every_micro_batch() -> None:
    layer, moment = layer_and_moment(0.5, whole=False)
    inputs = batches(2)
    for x in inputs:
        layer(x)
    expected = second_moment(*(x.reshape(-1, 3)[:3] for x in inputs))
    torch.testing.assert_close(moment.mean(), expected)


def test_half_precision_inputs_are_summed_in_fp32() -> None:
    layer = nn.Linear(3, 2).to(torch.bfloat16)
    moment = InputMoment()
    moment.watch(layer)
    x = batches(1)[0].to(torch.bfloat16)
    layer(x)
    assert moment.mean().dtype == torch.float32
    torch.testing.assert_close(moment.mean().double(), second_moment(x.double()), rtol=1e-6, atol=0)


def test_a_vector_is_one_row() -> None:
    layer, moment = layer_and_moment()
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    layer(x)
    torch.testing.assert_close(moment.mean(), torch.outer(x, x))


def _rank(rank: int, address: str) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    layer, moment = layer_and_moment()
    inputs = [batches(1, 6)[0], batches(1, 10)[0]]
    layer(inputs[rank])
    torch.testing.assert_close(moment.mean(), second_moment(*inputs))
    dist.destroy_process_group()


def test_ranks_of_a_process_group_share_their_inputs(tmp_path: Path) -> None:
    spawn(_rank, args=(f"file://{tmp_path}/rendezvous",), nprocs=2)  # type: ignore[no-untyped-call]
