"""A learning rate may be a tensor, which captured steps read; every optimizer, on a CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.params import REGISTRY

RATES = (0.01, 0.02, 0.005, 0.0)


def train(net: Any, name: str, dtype: torch.dtype | None) -> None:
    """Train with rates as numbers, or in tensors of a dtype."""
    params = optimizer_params({"name": name, "lr": RATES[0], "weight_decay": 0.1}, "")
    optimizer = build_optimizer(net, params)
    generator = torch.Generator().manual_seed(0)
    for rate in RATES:
        optimizer.zero_grad()
        tokens = torch.randint(0, 11, (5, 8), generator=generator)
        loss = net(tokens).square().mean()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = rate if dtype is None else torch.tensor(rate, dtype=dtype)
        optimizer.step(lambda loss=loss: loss.detach())


@pytest.mark.parametrize("name", sorted(REGISTRY))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_in_a_tensor_is_worth_the_number(net: Any, name: str, dtype: torch.dtype) -> None:
    start, expected = copy.deepcopy(net), copy.deepcopy(net)
    train(net, name, dtype)
    train(expected, name, None)
    for ours, other in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6)
    assert not torch.equal(start.square.weight, net.square.weight)
