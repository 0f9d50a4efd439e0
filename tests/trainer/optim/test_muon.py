from __future__ import annotations

import copy
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.groups import split_parameters
from trainer.optim.muon import Muon, NorMuon
from trainer.optim.polar import coefficients

CASES: list[dict[str, Any]] = [
    {"name": "muon-torch"},
    {"name": "muon-torch", "nesterov": False, "weight_decay": 0.3, "momentum": 0.7},
    {"name": "muon-torch", "adjust_lr_fn": "match_rms_adamw", "muon_lr_ratio": 3.0},
    {"name": "muon-torch", "polar_method": "polar_express", "ns_steps": 7, "muon_lr": 0.2},
    {"name": "muon-torch", "polar_method": "svd"},
    {"name": "muon-torch", "betas": [0.5, 0.7], "eps": 1e-2, "weight_decay": 0.3, "ns_steps": 1},
    {"name": "normuon"},
    {"name": "normuon", "nesterov": False, "weight_decay": 0.3, "beta2": 0.6},
    {"name": "normuon", "muon_lr_ratio": 3.0, "eps": 1e-2, "momentum": 0.0, "beta2": 0.0},
    {"name": "normuon", "polar_method": "polar_express", "muon_lr": 0.2, "betas": [0.0, 0.5]},
]


def random_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        g = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        weight.grad = g.to(weight.dtype)


@pytest.mark.parametrize("values", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_follow_the_formulas(
    net: Any, oracle: ModuleType, values: dict[str, Any], dtype: torch.dtype
) -> None:
    net.to(dtype)
    params: Any = optimizer_params({"lr": 0.03, **values}, "")
    optimizer, reference = build_optimizer(net, params), oracle.Muon(params.name, params)
    matrices, named = set(split_parameters(net).matrices), dict(net.named_parameters())
    weights = {name: w.detach().double().numpy().copy() for name, w in named.items()}
    for step, factor in enumerate((1.0, 1.0, 0.5, 0.2)):
        random_gradients(net, step)
        if step % 2 == 0:
            net.unused.weight.grad = net.norm.bias.grad = None
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        optimizer.step()
        gradients = {n: w.grad.double().numpy() for n, w in named.items() if w.grad is not None}
        reference.step(weights, gradients, matrices, params.lr * factor)
    tolerance = 1e-9 if dtype == torch.float64 else 5e-4
    for name, weight in named.items():
        ours, expected = weight.detach().double(), torch.from_numpy(weights[name])
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with 2.9")
@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_matrices_move_as_under_torch_optim_muon_and_the_rest_as_under_adamw(
    net: Any, monkeypatch: pytest.MonkeyPatch, adjust_lr_fn: str, nesterov: bool
) -> None:
    # In bf16 torch's own rounding would be all there is to see.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    twin, shared = copy.deepcopy(net), {"weight_decay": 0.1, "lr": 0.02}
    values = {"name": "muon-torch", "adjust_lr_fn": adjust_lr_fn, "nesterov": nesterov, **shared}
    ours = build_optimizer(net, optimizer_params(values, ""))
    split = split_parameters(twin)
    options: dict[str, Any] = {"adjust_lr_fn": adjust_lr_fn, "nesterov": nesterov, **shared}
    muon = torch.optim.Muon(list(split.matrices.values()), momentum=0.95, **options)
    adamw = torch.optim.AdamW(list(split.rest.values()), betas=(0.9, 0.95), **shared)
    for step in range(4):
        random_gradients(net, step)
        random_gradients(twin, step)
        ours.step()
        muon.step()
        adamw.step()
    for (name, weight), expected in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-9, atol=1e-10, msg=name)


def test_the_margin_is_taken_back_by_the_first_polynomial() -> None:
    (a, b, c), *others = coefficients("jordan-torch", 3)
    for s in (0.1, 0.5, 1.0):
        scaled = s / 1.01
        ours = a * scaled + b * scaled**3 + c * scaled**5
        assert ours == pytest.approx(3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5)
    assert others == [(3.4445, -4.7750, 2.0315)] * 2


def test_normuons_updates_are_as_large_as_adamws_and_its_rows_even_out(net: Any) -> None:
    values = {"name": "normuon", "lr": 0.5, "beta2": 0.0, "momentum": 0.0}
    optimizer = build_optimizer(net, optimizer_params(values, ""))
    before = net.up.weight.detach().clone()
    random_gradients(net, 0)
    net.up.weight.grad[3] *= 1e3
    optimizer.step()
    rows = (net.up.weight.detach() - before).square().mean(1).sqrt()
    torch.testing.assert_close(rows, torch.full_like(rows, 0.5 * 0.2), rtol=1e-6, atol=0)


def test_matrices_of_zero_gradient_stay(net: Any) -> None:
    for name in ("muon-torch", "normuon"):
        optimizer = build_optimizer(net, optimizer_params({"name": name}, ""))
        before = net.up.weight.detach().clone()
        net.up.weight.grad = torch.zeros_like(before)
        optimizer.step()
        assert torch.equal(net.up.weight.detach(), before)


@pytest.mark.parametrize("kind", [Muon, NorMuon])
def test_groups_have_rates_and_decays_of_their_own(net: Any, kind: type[Muon]) -> None:
    shared = {"norm": "spectral", "momentum": 0.0, "nesterov": False, "polar": "polar-express"}
    shared |= {"ns_steps": 12, "adjust_lr_fn": "original", "beta2": 0.0, "eps": 0.0}
    groups: list[dict[str, Any]] = [
        {"params": [net.up.weight], "lr": 0.1, "weight_decay": 0.5, **shared},
        {"params": [net.again.weight], **shared},
        {"params": [net.up.bias], "norm": "adamw", "lr": 0.3, "betas": (0.0, 0.0), "eps": 0.0},
    ]
    held = (net.up.weight, net.again.weight, net.up.bias)
    up, again, bias = (weight.detach().clone() for weight in held)
    random_gradients(net, 0)
    kind(groups, lr=0.01, weight_decay=0.0).step()
    root = math.sqrt(15 / 6)
    if kind is Muon:
        for weight, old, lr in ((net.up.weight, 0.95 * up, 0.1), (net.again.weight, again, 0.01)):
            moved = torch.linalg.svdvals(weight.detach() - old)
            torch.testing.assert_close(moved, torch.full_like(moved, lr * root))
    else:
        for weight, old, lr in ((net.up.weight, 0.95 * up, 0.1), (net.again.weight, again, 0.01)):
            moved = (weight.detach() - old).square().mean().sqrt().item()
            assert moved == pytest.approx(0.2 * lr)
    torch.testing.assert_close(net.up.bias.detach(), bias - 0.3 * net.up.bias.grad.sign())


def test_a_state_of_torch_optim_adamw_is_what_the_rest_keeps(net: Any) -> None:
    optimizer = build_optimizer(net, optimizer_params({"name": "muon-torch"}, ""))
    random_gradients(net, 0)
    optimizer.step()
    reference = torch.optim.AdamW([net.up.bias], fused=True)
    reference.step()
    assert set(optimizer.state[net.up.bias]) == set(reference.state[net.up.bias])
    assert set(optimizer.state[net.up.weight]) == {"momentum_buffer"}
