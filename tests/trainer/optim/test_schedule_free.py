from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import trainer
from rundir import Run
from rundir.files import METRICS_FILE, iter_metrics
from trainer.optim import build_optimizer, optimizer_params
from trainer.training import Averaging

Mapping = dict[str, Any]


def stepped(net: Any, steps: int, **values: Any) -> Any:
    params = optimizer_params({"name": "schedule-free-adamw", "lr": 0.03, **values}, "")
    optimizer = build_optimizer(net, params)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for weight in net.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        net.unused.weight.grad = None
        optimizer.step()
    return optimizer


def test_evaluation_puts_the_average_into_the_weights(net: Any, modern_oracle: ModuleType) -> None:
    params = optimizer_params({"name": "schedule-free-adamw", "lr": 0.03, "weight_decay": 0.2}, "")
    named = {n: w for n, w in net.named_parameters() if w is not net.unused.weight}
    held = {name: weight.detach().numpy().copy() for name, weight in named.items()}
    references = {name: modern_oracle.ScheduleFree(params, x) for name, x in held.items()}
    optimizer = stepped(net, 4, weight_decay=0.2)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for name, weight in net.named_parameters():
            g = torch.randn(weight.shape, generator=generator).double().numpy()
            if name in named:
                held[name] = references[name].step(held[name], g, 0.03, 0.2)
    optimizer.eval()
    for name, weight in named.items():
        average = torch.from_numpy(references[name].x)
        torch.testing.assert_close(weight.detach(), average, rtol=1e-11, atol=1e-11)


def test_training_goes_on_to_the_bit_after_an_evaluation(net: Any) -> None:
    net.float()
    twin = copy.deepcopy(net)
    optimizer, other = stepped(net, 3), stepped(twin, 3)
    optimizer.eval()
    optimizer.eval()
    assert not torch.equal(net.up.weight, twin.up.weight)
    assert torch.equal(net.unused.weight, twin.unused.weight)
    optimizer.train()
    optimizer.train()
    for weight, expected in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(weight, expected)
    for model, each in ((net, optimizer), (twin, other)):
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        each.step()
    for weight, expected in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(weight, expected)


def test_evaluation_before_the_first_step_changes_nothing(net: Any) -> None:
    optimizer, before = stepped(net, 0), net.up.weight.detach().clone()
    optimizer.eval()
    assert torch.equal(net.up.weight.detach(), before)
    optimizer.train()
    assert torch.equal(net.up.weight.detach(), before)


@pytest.mark.parametrize("call", ["step", "state_dict", "load_state_dict"])
def test_what_needs_the_training_weights_is_refused_while_the_average_is_there(
    net: Any, call: str
) -> None:
    optimizer = stepped(net, 2)
    arguments = [optimizer.state_dict()] if call == "load_state_dict" else []
    optimizer.eval()
    before = net.up.weight.detach().clone()
    with pytest.raises(RuntimeError, match=rf"^{call}\(\) after eval\(\).*call train\(\)"):
        getattr(optimizer, call)(*arguments)
    assert torch.equal(net.up.weight.detach(), before)


def test_a_rate_of_zero_moves_nothing_and_counts_for_nothing(net: Any) -> None:
    before = [weight.detach().clone() for weight in net.parameters()]
    optimizer = stepped(net, 2, lr=0.0, weight_decay=0.5)
    optimizer.eval()
    torch.testing.assert_close(list(net.parameters()), before, rtol=1e-14, atol=1e-14)


def test_of_several_optimizers_only_this_one_is_asked_for_its_average() -> None:
    model = nn.Linear(2, 2)
    ours = build_optimizer(model, optimizer_params({"name": "schedule-free-adamw"}, ""))
    assert isinstance(ours, Averaging)
    assert not isinstance(
        build_optimizer(model, optimizer_params({"name": "adamw"}, "")), Averaging
    )


def losses(config: Mapping, path: Path) -> dict[tuple[str, int], float]:
    with Run(path, threads=1) as run:
        trainer.run(config, run)
    return {(r["stream"], r["step"]): r["loss"] for r in iter_metrics(path / METRICS_FILE)}


def test_the_loop_validates_the_average_and_saves_what_training_needs(
    tiny_run: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averaged = losses(tiny_run, tmp_path / "a")
    monkeypatch.setattr("trainer.training.Averaging", int)  # which no optimizer is
    plain = losses(tiny_run, tmp_path / "b")
    assert {key: loss for key, loss in averaged.items() if key[0] == "train"} == {
        key: loss for key, loss in plain.items() if key[0] == "train"
    }
    assert averaged["val", 12] != plain["val", 12]
    first, second = (
        torch.load(tmp_path / run / "checkpoints" / "step-00000012.pt", weights_only=True)
        for run in "ab"
    )
    for ours, theirs in zip(first["model"].values(), second["model"].values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def tiny_run(tiny: Mapping, change: Callable[..., Mapping]) -> Mapping:
    tiny["optimizer"]["optimizer_params"] = {"name": "schedule-free-adamw", "lr": 0.01}
    return change(tiny, logging__logging_params__save_ckpt_step=6)
