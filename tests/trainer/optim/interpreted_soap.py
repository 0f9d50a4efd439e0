"""Run by test_soap.py in a process where Triton's interpreter takes CPU tensors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from trainer.optim import build_optimizer, optimizer_params

VALUES: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "precondition_frequency": 3, "eps": 1e-3}


def random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(model: nn.Module, backend: str) -> Any:
    params = optimizer_params({"name": "soap", "backend": backend, **VALUES}, "")
    optimizer: Any = build_optimizer(model, params)
    assert optimizer._backend == backend
    return optimizer


def trained(
    model: nn.Module, backend: str, *, device_counts: bool = False, then: str | None = None
) -> nn.Module:
    optimizer = built(model, backend)
    for step in range(6):
        if then is not None and step == 3:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = built(model, then)
            optimizer.load_state_dict(saved)
        for i, weight in enumerate(model.parameters()):
            absent = i == 2 and step == 1
            weight.grad = None if absent else random(tuple(weight.shape), 10 * step + i)
        optimizer.clip_grad_norm(5.0)
        if device_counts and step >= 2:
            optimizer._device_counts = True
            for group in optimizer.param_groups:
                group["lr"] = torch.as_tensor(group["lr"])
        optimizer.step()
        if device_counts and step >= 2 and step % 3 == 0:
            optimizer.refresh()
    return model


@pytest.mark.parametrize("device_counts", [False, True])
def test_the_kernels_steps_agree_with_torchs(device_counts: bool) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(7, 31), nn.Linear(31, 5), nn.Linear(7, 31), nn.LayerNorm(5))
    twin = trained(copy.deepcopy(model), "torch", device_counts=device_counts)
    ours = trained(model, "triton", device_counts=device_counts)
    for weight, expected in zip(ours.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("first", "then"), [("torch", "triton"), ("triton", "torch")])
def test_either_backend_goes_on_from_the_others_state(first: str, then: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 31), nn.Linear(31, 5))
    twin = trained(copy.deepcopy(model), "torch")
    for weight, expected in zip(
        trained(model, first, then=then).parameters(), twin.parameters(), strict=True
    ):
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=2e-6)
