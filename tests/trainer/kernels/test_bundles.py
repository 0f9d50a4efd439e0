"""Elementwise steps on a CPU in cache-sized pieces, by one thread and by two."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.kernels import AdamWScalars, adamw_step, threads
from trainer.kernels.bundles import Columns, can_bundle, step_in_bundles
from trainer.kernels.operands import Slot
from trainer.optim.adamw import KernelNAdam

SHAPES = [(200, 300), (7,), (3, 5), (40000,), (0, 4), (65, 257), (1,)]


@pytest.fixture(params=[1, 2], autouse=True)
def _threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(threads, "_LEAST_US", 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The second of these lies transposed in memory."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    return [*tensors, torch.randn(100, 350, generator=generator, dtype=dtype).T]


def test_every_number_is_in_one_bundle_with_its_owner() -> None:
    ones, owned = [torch.zeros_like(each) for each in drawn(0)], drawn(0)

    def step(columns: Columns, owners: list[int]) -> None:
        for one, own, owner in zip(*columns, owners, strict=True):
            one.add_(1)
            own.fill_(owner)

    step_in_bundles([ones, owned], step)
    for i, (one, own) in enumerate(zip(ones, owned, strict=True)):
        assert bool((one == 1).all())
        assert bool((own == i).all())


def test_what_lies_otherwise_or_has_gaps_is_not_bundled() -> None:
    weights = drawn(0)
    assert can_bundle([weights, drawn(1)])
    assert not can_bundle([weights, [each.contiguous() for each in drawn(1)]])
    assert not can_bundle([weights, drawn(1, torch.float64)])
    gaps = torch.zeros(6, 8)[:, :4]
    assert not can_bundle([[gaps], [gaps]])


@pytest.mark.parametrize("options", [{}, {"decoupled_weight_decay": True}], ids=str)
def test_nadam_is_torchs(options: Any) -> None:
    ours, theirs = ([torch.nn.Parameter(each) for each in drawn(0)] for _ in range(2))
    keys = {"lr": 0.02, "weight_decay": 0.3, "betas": (0.8, 0.9), **options}
    mine = KernelNAdam(ours, backend="torch", **keys)
    other = torch.optim.NAdam(theirs, foreach=False, **keys)
    for step in range(1, 4):
        for i, (a, b, g) in enumerate(zip(ours, theirs, drawn(step), strict=True)):
            # Some begin later, so that their counts differ.
            a.grad, b.grad = (g, g.clone()) if i % 3 < step else (None, None)
        mine.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        for key, value in other.state[b].items():
            torch.testing.assert_close(mine.state[a][key], value, rtol=1e-6, atol=1e-6)


def test_a_clipped_step_is_that_of_clipped_gradients() -> None:
    factor = torch.tensor(0.3)
    columns = [drawn(0), drawn(1), drawn(2), [each.square() for each in drawn(3)]]
    twin = [[each.clone() for each in column] for column in columns]
    before = [each.clone() for each in columns[1]]
    twin[1] = [each * factor for each in twin[1]]
    counts = torch.arange(1.0, 1.0 + len(columns[0]))
    scalars = AdamWScalars(torch.tensor(0.1), 0.8, 0.9, 1e-8, 0.2, counts)
    adamw_step(list(map(Slot, *columns)), scalars, "torch", factor)
    adamw_step(list(map(Slot, *twin)), scalars, "torch")
    del twin[1]
    gradients = columns.pop(1)
    for ours, theirs in zip(chain(*columns), chain(*twin), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    for gradient, left in zip(gradients, before, strict=True):
        assert torch.equal(gradient, left)
