from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.sign import SignDescent

CASES: list[dict[str, Any]] = [
    {"name": "sign-gd"},
    {"name": "sign-gd", "momentum": 0.7, "nesterov": True, "weight_decay": 0.3},
    {"name": "sign-gd", "momentum": 0.0},
    {"name": "sign-gd-nonlmo", "lr": 1e-4},
    {"name": "sign-gd-nonlmo", "lr": 1e-4, "nesterov": True, "weight_decay": 0.3},
    {"name": "lion"},
    {"name": "lion", "betas": [0.6, 0.9], "weight_decay": 0.3},
    {"name": "lion", "betas": [0.0, 0.5]},
]


def random_gradients(net: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in net.parameters():
        g = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        weight.grad = g.to(weight.dtype)


@pytest.mark.parametrize("values", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_follow_the_formulas(
    net: Any, oracle: ModuleType, values: dict[str, Any], dtype: torch.dtype
) -> None:
    net.to(dtype)
    params: Any = optimizer_params({"lr": 0.03, **values}, "")
    optimizer, reference = build_optimizer(net, params), oracle.Sign(params.name, params)
    named = dict(net.named_parameters())
    weights = {name: w.detach().double().numpy().copy() for name, w in named.items()}
    for step, factor in enumerate((1.0, 1.0, 0.5, 0.2)):
        random_gradients(net, step)
        if step % 2 == 0:
            net.unused.weight.grad = None
        optimizer.param_groups[0]["lr"] = params.lr * factor
        optimizer.step()
        gradients = {n: w.grad.double().numpy() for n, w in named.items() if w.grad is not None}
        reference.step(weights, gradients, params.lr * factor)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    for name, weight in named.items():
        ours, expected = weight.detach().double(), torch.from_numpy(weights[name])
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance, msg=name)


def test_groups_have_rates_of_their_own_and_one_length(net: Any) -> None:
    params: Any = optimizer_params({"name": "sign-gd-nonlmo", "momentum": 0.0}, "")
    weights = list(net.parameters())
    groups: Any = [{"params": weights[:3], "lr": 1e-3}, {"params": weights[3:], "lr": 1e-5}]
    before = [weight.detach().clone() for weight in weights]
    random_gradients(net, 0)
    length = sum(weight.grad.abs().sum().item() for weight in weights)
    SignDescent(groups, params).step()
    for i, (weight, old) in enumerate(zip(weights, before, strict=True)):
        expected = old - (1e-3 if i < 3 else 1e-5) * length * weight.grad.sign()
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


def test_without_the_length_a_gradients_size_does_not_matter(net: Any) -> None:
    optimizer = build_optimizer(net, optimizer_params({"name": "sign-gd", "lr": 0.25}, ""))
    before = net.up.weight.detach().clone()
    net.up.weight.grad = torch.full_like(before, -1e-20)
    optimizer.step()
    assert torch.equal(net.up.weight.detach(), before + 0.25)


def test_16_bit_momenta_are_summed_beyond_their_type() -> None:
    net = torch.nn.Linear(300, 300, bias=False).half()
    optimizer = build_optimizer(net, optimizer_params({"name": "sign-gd-nonlmo", "lr": 1e-6}, ""))
    before = net.weight.detach().float()
    net.weight.grad = torch.ones_like(net.weight)  # whose sum, 90000, half has no number for
    optimizer.step()
    moved = before - net.weight.detach().float()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.09), rtol=1e-2, atol=1e-4)
