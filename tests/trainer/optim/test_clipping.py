"""Every optimizer that folds the clip steps as torch's do after ``clip_grad_norm_``."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.clipping import FoldsClip
from trainer.optim.params import REGISTRY

NAMES = (
    "sgd",
    "sgd-m",
    "sgd-nesterov",
    "adam",
    "adamw",
    "nadam",
    "nadamw",
    "lion",
    "sign-gd",
    "sign-gd-nonlmo",
    "momo",
    "momo-star",
    "momo-adam",
    "momo-adam-star",
    "muon",
    "scion",
    "muon-momo",
    "muonmax-momo",
    "muon-torch",
    "normuon",
    "soap",
    "ademamix",
    "mars",
    "schedule-free-adamw",
)


def built(model: Any, name: str) -> Any:
    return build_optimizer(model, optimizer_params({"name": name, "lr": 1e-3}, ""))


def set_gradients(model: Any, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for i, weight in enumerate(model.parameters()):
        g = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        weight.grad = None if i == 2 and step == 1 else g


@pytest.mark.parametrize("name", NAMES)
def test_the_clip_is_that_of_torch_and_holds_for_one_step(net: Any, name: str) -> None:
    twin = copy.deepcopy(net)
    ours, theirs = built(net, name), built(twin, name)
    assert isinstance(ours, FoldsClip)
    for step, limit in enumerate((1.0, 0.5, None, 1e6, float("inf"))):
        set_gradients(net, step)
        set_gradients(twin, step)
        if limit is not None:
            norm = ours.clip_grad_norm(limit)
            expected = torch.nn.utils.clip_grad_norm_(twin.parameters(), limit)
            torch.testing.assert_close(norm, expected)
        for optimizer in (ours, theirs):
            optimizer.step(lambda: 2.0)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("abandon", ["zero_grad", "forget", "no gradient", "load_state_dict"])
@pytest.mark.parametrize("name", NAMES)
def test_a_clip_whose_step_is_not_taken_is_forgotten(net: Any, name: str, abandon: str) -> None:
    twin = copy.deepcopy(net)
    ours, theirs = built(net, name), built(twin, name)
    set_gradients(net, 0)
    net.up.weight.grad[0, 0] = float("nan")
    ours.clip_grad_norm(1.0)
    if abandon == "no gradient":
        for weight in net.parameters():
            weight.grad = None
        assert ours.clip_grad_norm(1.0) == 0
    elif abandon == "load_state_dict":
        ours.load_state_dict(ours.state_dict())
    else:
        getattr(ours, abandon)()
    for model, optimizer in ((net, ours), (twin, theirs)):
        set_gradients(model, 0)
        optimizer.step(lambda: 2.0)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["adamw", "nadam", "lion", "momo-adam", "mars"])
def test_without_gradients_the_norm_is_nought(net: Any, name: str) -> None:
    optimizer = built(net, name)
    assert optimizer.clip_grad_norm(1.0) == 0
    optimizer.step(lambda: 2.0)


@pytest.mark.parametrize(
    "name",
    [
        "lion",
        "sign-gd",
        "momo",
        "momo-adam",
        "muon",
        "muonmax-momo",
        "muon-torch",
        "soap",
        "mars",
        "ademamix",
        "schedule-free-adamw",
    ],
)
def test_a_folded_clip_leaves_the_gradients_alone(net: Any, name: str) -> None:
    optimizer = built(net, name)
    set_gradients(net, 0)
    before = net.up.weight.grad.clone()
    optimizer.clip_grad_norm(1e-3)
    optimizer.step(lambda: 2.0)
    assert torch.equal(net.up.weight.grad, before)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_gradients_of_another_order_in_memory_give_the_same_step(net: Any, name: str) -> None:
    net.float()
    twin = copy.deepcopy(net)
    pairs = [(model, built(model, name)) for model in (net, twin)]
    for step in range(2):
        tokens = (torch.arange(20).reshape(4, 5) + step) % 11
        for model, optimizer in pairs:
            optimizer.zero_grad()
            model(tokens).square().mean().backward()
        for weight in net.parameters():
            if weight.grad is not None and weight.ndim == 2:
                weight.grad = weight.grad.T.contiguous().T
                assert weight.grad.stride() != weight.stride()
        for _, optimizer in pairs:
            if step and isinstance(optimizer, FoldsClip):
                optimizer.clip_grad_norm(1e-2)
            optimizer.step(lambda: 5.0)
    for ours, expected in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_weights_with_gaps_in_memory_take_the_same_step(net: Any, name: str) -> None:
    net.float()
    twin = copy.deepcopy(net)
    for layer in (net.up, net.norm):
        wide = torch.stack((layer.bias.detach(), torch.full_like(layer.bias, 7.0)), 1)
        layer.bias = torch.nn.Parameter(wide[:, 0])
        assert layer.bias.stride() == (2,)
    for model in (net, twin):
        optimizer = built(model, name)
        for step in range(3):
            optimizer.zero_grad()
            model((torch.arange(20).reshape(4, 5) + step) % 11).square().mean().backward()
            optimizer.clip_grad_norm(1e-2)
            optimizer.step(lambda: 5.0)
    for ours, expected in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    assert (net.up.bias.as_strided((15,), (2,), 1) == 7).all()
