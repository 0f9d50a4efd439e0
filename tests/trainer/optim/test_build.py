from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from rundir import UserError
from trainer.optim import build_optimizer, lr_factor, optimizer_params
from trainer.optim.params import REGISTRY

CONFIGS = Path(__file__).parents[3] / "conf" / "optimizer"
NAMES = sorted(REGISTRY)
SIGNS = ("sign-gd", "lion")
"""Torch's sign of NaN is 0, so that these show it in their state alone."""

VALUES: dict[str, dict[str, Any]] = {
    "soap": {"precondition_frequency": 2},
    "muon-momo": {"nuc_approx": "last"},
}


def configured(model: nn.Module, name: str, **values: Any) -> torch.optim.Optimizer:
    shipped = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["optimizer_params"]
    return build_optimizer(model, optimizer_params({**shipped, **values}, ""))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 11, (4, 9), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_factor("constant-linear", step, 30, 0.4)
        optimizer.step(lambda loss=loss: loss)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_config_trains(net: Any, name: str) -> None:
    losses = train(net.float(), configured(net, name), range(25))
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_state_continues_to_the_bit(net: Any, name: str, tmp_path: Path) -> None:
    values = {"ema_beta": 0.5} if name.startswith("dap") else {"weight_decay": 0.3}
    net.float()
    twin = copy.deepcopy(net)
    train(net, configured(net, name, **values), range(6))
    first = configured(twin, name, **values)
    train(twin, first, range(3))
    torch.save({"model": twin.state_dict(), "optimizer": first.state_dict()}, tmp_path / "saved")
    saved = torch.load(tmp_path / "saved", weights_only=True)
    resumed = type(net)()
    resumed.load_state_dict(saved["model"])
    second = configured(resumed, name, **values)
    second.load_state_dict(saved["optimizer"])
    train(resumed, second, range(3, 6))
    for ours, expected in zip(resumed.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_16_bit_weights_continues_to_the_bit(net: Any, name: str) -> None:
    values = {"ema_beta": 0.5} if name.startswith("dap") else VALUES.get(name, {})
    net.bfloat16()
    first = configured(net, name, **values)
    train(net, first, range(3))
    twin = copy.deepcopy(net)
    second = configured(twin, name, **values)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for weight, other in zip(net.parameters(), twin.parameters(), strict=True):
        for key, value in first.state.get(weight, {}).items():
            assert second.state[other][key].dtype == value.dtype, key
    train(net, first, range(3, 6))
    train(twin, second, range(3, 6))
    for ours, expected in zip(twin.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_without_gradient_stays_and_has_no_state(net: Any, name: str) -> None:
    before = net.unused.weight.detach().clone()
    optimizer = configured(net, name, weight_decay=0.5)
    train(net, optimizer, range(2))
    assert torch.equal(net.unused.weight.detach(), before)
    assert not optimizer.state.get(net.unused.weight)


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_whose_first_gradient_comes_later_begins_then(net: Any, name: str) -> None:
    before = net.up.bias.detach().clone()
    optimizer: Any = configured(net, name, lr=0.01)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        net(torch.zeros(4, 9, dtype=torch.long))  # whose inputs DAP looks at
        for weight in net.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        late = (net.up.bias, net.square.weight) if step < 2 else ()
        for weight in (net.unused.weight, *late):
            weight.grad = None
        optimizer.clip_grad_norm(1.0)
        optimizer.step(lambda step=step: 3.0 - 0.1 * step)
        assert torch.equal(net.up.bias, before) == (step < 2)
        assert not any(optimizer.state.get(weight) for weight in late)
    assert all(weight.isfinite().all() for weight in net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_without_any_gradient_changes_nothing(net: Any, name: str) -> None:
    before = copy.deepcopy(net.state_dict())
    configured(net, name, weight_decay=0.5).step(lambda: 1.0)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_non_finite_gradient_reaches_its_weight_so_that_it_cannot_go_unnoticed(
    net: Any, name: str
) -> None:
    optimizer = configured(net, name)
    net(torch.zeros(4, 9, dtype=torch.long)).sum().backward()
    net.up.weight.grad[0, 0] = float("nan")
    optimizer.step(lambda: 1.0)
    state = [part for part in optimizer.state[net.up.weight].values() if part.ndim]
    shown = state if name in SIGNS else [net.up.weight]
    assert shown
    assert not all(part.isfinite().all() for part in shown)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights_are_not_optimized(net: Any, name: str) -> None:
    net.down.weight.requires_grad_(False)
    optimizer = configured(net, name)
    held = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert all(weight is not net.down.weight for weight in held)
    assert len(held) == len(list(net.parameters())) - 1


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_agree_to_the_bit(net: Any, name: str) -> None:
    twin = copy.deepcopy(net)
    assert train(net, configured(net, name), range(4)) == train(
        twin, configured(twin, name), range(4)
    )


def test_triton_without_cuda_is_refused_before_any_step(
    net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="backend = 'triton'; must be auto or torch: ") as caught:
        configured(net, "adamw", backend="triton")
    assert caught.value.exit_code == 2


KERNELS = sorted(name for name, cls in REGISTRY.items() if name in cls.KERNELS)


@pytest.mark.parametrize("name", KERNELS)
def test_triton_without_cuda_is_refused_of_a_model_without_matrices_too(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="backend = 'triton'; must be auto or torch: "):
        configured(nn.LayerNorm(3), name, backend="triton")
