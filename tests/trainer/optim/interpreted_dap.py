"""Run by test_dap_steps.py in a process where Triton's interpreter takes CPU tensors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from trainer.optim import build_optimizer, optimizer_params

# Divided by its own root alone, a direction that rounding decides would be as large as any.
VALUES: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "dap_beta2": 0.9, "dap_eps": 0.1}


def built(model: nn.Module, backend: str) -> Any:
    params = optimizer_params({"name": "dap-ns-nadam", "backend": backend, **VALUES}, "")
    optimizer: Any = build_optimizer(model, params)
    assert optimizer._backend == backend
    return optimizer


def trained(model: nn.Module, backend: str, then: str | None = None) -> nn.Module:
    optimizer = built(model, backend)
    for step in range(3):
        if then is not None and step == 1:
            saved = copy.deepcopy(optimizer.state_dict())
            for module in model.modules():
                module._forward_pre_hooks.clear()
            optimizer = built(model, then)
            optimizer.load_state_dict(saved)
        optimizer.zero_grad()
        x = torch.randn(9, 7, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        if step == 1:
            optimizer._clip_factor = torch.tensor(0.5)
        if step == 2 and backend == "triton":
            # From here on the device counts.
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"])
        optimizer.step()
    return model


def test_the_kernels_step_agrees_with_torchs() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(7, 31), nn.Tanh(), nn.Linear(31, 5), nn.LayerNorm(5))
    twin = trained(copy.deepcopy(model), "torch")
    for ours, expected in zip(
        trained(model, "triton").parameters(), twin.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("first", "then"), [("torch", "triton"), ("triton", "torch")])
def test_either_backend_goes_on_from_the_others_state(first: str, then: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(7, 31), nn.Tanh(), nn.Linear(31, 5), nn.LayerNorm(5))
    twin = trained(copy.deepcopy(model), "torch")
    for ours, expected in zip(
        trained(model, first, then).parameters(), twin.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-6)
