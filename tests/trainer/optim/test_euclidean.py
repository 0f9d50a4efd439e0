"""torch.optim is the oracle here; our own AdamW is tested beside its kernel."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.clipping import SGD

CASES = [
    ({"name": "sgd"}, torch.optim.SGD, {}),
    ({"name": "sgd-m", "momentum": 0.8}, torch.optim.SGD, {"momentum": 0.8}),
    (
        {"name": "sgd-m", "momentum": 0.8, "dampening": "momentum"},
        torch.optim.SGD,
        {"momentum": 0.8, "dampening": 0.8},
    ),
    ({"name": "sgd-nesterov"}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ({"name": "adam", "betas": [0.8, 0.9]}, torch.optim.Adam, {"betas": (0.8, 0.9)}),
    ({"name": "adamw", "betas": [0.8, 0.9]}, torch.optim.AdamW, {"betas": (0.8, 0.9)}),
    (
        {"name": "nadam", "betas": [0.8, 0.9], "momentum_decay": 4e-3},
        torch.optim.NAdam,
        {"betas": (0.8, 0.9), "momentum_decay": 4e-3},
    ),
    (
        {"name": "nadamw", "betas": [0.8, 0.9]},
        torch.optim.NAdam,
        {"betas": (0.8, 0.9), "momentum_decay": 0.0, "decoupled_weight_decay": True},
    ),
    (
        {"name": "nadamw", "betas": [0.8, 0.9], "decoupled_weight_decay": False},
        torch.optim.NAdam,
        {"betas": (0.8, 0.9), "momentum_decay": 0.0, "decoupled_weight_decay": False},
    ),
]


@pytest.mark.parametrize(("values", "cls", "options"), CASES, ids=str)
def test_steps_are_those_of_torch(net: Any, values: Any, cls: Any, options: Any) -> None:
    twin = copy.deepcopy(net)
    params = optimizer_params({**values, "lr": 0.05, "weight_decay": 0.1}, "")
    ours = build_optimizer(net, params)
    slow = {"foreach": False} | ({"fused": False} if cls is not torch.optim.NAdam else {})
    theirs = cls(twin.parameters(), lr=0.05, weight_decay=0.1, **options, **slow)
    generator = torch.Generator().manual_seed(1)
    for factor in (1.0, 0.5, 0.25):
        for a, b in zip(net.parameters(), twin.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator, dtype=a.dtype)
            b.grad = a.grad.clone()
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 0.05 * factor
            optimizer.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "sgd-m", "adam", "adamw"])
def test_a_cpu_takes_the_fused_step(net: Any, name: str) -> None:
    optimizer = build_optimizer(net, optimizer_params({"name": name}, ""))
    assert optimizer.param_groups[0]["fused"] is True


@pytest.mark.parametrize("dampening", [0.0, 0.9])
def test_momenta_that_begin_later_are_those_of_torchs_loop(net: Any, dampening: float) -> None:
    """torch's fused step fails on them."""
    twin = copy.deepcopy(net)
    options: Any = {"lr": 0.1, "momentum": 0.9, "dampening": dampening, "weight_decay": 0.2}
    ours = SGD(net.parameters(), **options, fused=True)
    theirs = torch.optim.SGD(twin.parameters(), **options, foreach=False)
    for step in range(4):
        for i, pair in enumerate(zip(net.parameters(), twin.parameters(), strict=True)):
            gradient = torch.randn(pair[0].shape, dtype=pair[0].dtype)
            for weight in pair:
                weight.grad = gradient.clone() if i % 3 <= step else None
        assert ours.step(lambda: 5.0) == 5.0
        theirs.step()
        for a, b in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b)
