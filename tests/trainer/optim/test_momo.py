from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.momo import Momo, MomoAdam
from trainer.optim.truncation import truncated_step

NAMES = ("momo", "momo-star", "momo-adam", "momo-adam-star")
CASES: list[dict[str, Any]] = [
    {"name": "momo"},
    {"name": "momo", "weight_decay": 0.7, "beta": 0.6, "lb": -1.5},
    {"name": "momo", "weight_decay": 0.7, "bias_correction": True},
    {"name": "momo", "beta": 0.0, "lr": 0.001},
    {"name": "momo-star", "weight_decay": 0.7},
    {"name": "momo-star", "weight_decay": 0.7, "lb": 1.2},
    {"name": "momo-star", "bias_correction": True, "lb": 1.2, "beta": 0.5},
    {"name": "momo-adam"},
    {"name": "momo-adam", "weight_decay": 0.7, "betas": [0.6, 0.8], "eps": 1e-3, "lb": 0.5},
    {"name": "momo-adam", "weight_decay": 0.7, "divide": False},
    {"name": "momo-adam-star", "weight_decay": 0.7, "lb": -2.0},
    {"name": "momo-adam-star", "weight_decay": 0.7, "lb": 1.2},
    {"name": "momo-adam-star", "weight_decay": 0.7, "divide": False, "betas": [0.0, 0.9]},
    {"name": "momo-adam-star", "lb": 1.5, "eps": 0.1},
]
LOSSES = (4.0, 2.0, 1.0, 6.0, 0.1, 3.0, 9.0, 0.4)
FACTORS = (1.0, 1.0, 0.5, 0.2, 1.0, 0.0, 1.0, 0.1)


def momo(model: nn.Module, name: str, **values: Any) -> Any:
    return build_optimizer(model, optimizer_params({"name": name, **values}, ""))


def random_gradients(model: nn.Module, seed: int, size: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        g = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        weight.grad = (size * g).to(weight.dtype)


def beside_the_oracle(
    net: Any,
    oracle: ModuleType,
    values: dict[str, Any],
    tolerance: float,
    absent: Sequence[tuple[str, ...]] = ((),),
) -> Any:
    """Take steps, in turn without the gradients of weights with these in their names."""
    params: Any = optimizer_params({"lr": 0.5, **values}, "")
    optimizer, reference = build_optimizer(net, params), oracle.Momo(params.name, params)
    weights = {n: w.detach().double().numpy().copy() for n, w in net.named_parameters()}
    for step, (value, factor) in enumerate(zip(LOSSES, FACTORS, strict=True)):
        random_gradients(net, step)
        for name, weight in net.named_parameters():
            if name.startswith(absent[step % len(absent)]):
                weight.grad = None
        gradients = {
            n: w.grad.double().numpy() for n, w in net.named_parameters() if w.grad is not None
        }
        loss = torch.tensor(value, dtype=net.up.weight.dtype)
        optimizer.param_groups[0]["lr"] = params.lr * factor
        assert optimizer.step(lambda loss=loss: loss) is loss
        tau, _ = reference.step(weights, gradients, value, params.lr * factor)
        taken = params.lr * factor * optimizer.step_scale.item()
        assert taken == pytest.approx(tau, rel=tolerance, abs=tolerance * params.lr)
        for name, weight in net.named_parameters():
            expected, ours = torch.from_numpy(weights[name]), weight.detach().double()
            torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance, msg=name)
    return reference


@pytest.mark.parametrize("values", CASES, ids=str)
def test_steps_follow_the_formulas(net: Any, oracle: ModuleType, values: dict[str, Any]) -> None:
    beside_the_oracle(net, oracle, values, 1e-10)


@pytest.mark.parametrize("values", CASES, ids=str)
def test_fp32_follows_the_formulas(net: Any, oracle: ModuleType, values: dict[str, Any]) -> None:
    beside_the_oracle(net.float(), oracle, values, 2e-4)


ABSENT = (("unused", "square"), (), ("up", "wte"), ("unused", "lm_head", "norm"))
"""Beginnings of the names without gradient, step by step: at first, later, matrices and others."""


@pytest.mark.parametrize("values", CASES, ids=str)
def test_steps_follow_the_formulas_where_gradients_come_and_go(
    net: Any, oracle: ModuleType, values: dict[str, Any]
) -> None:
    beside_the_oracle(net, oracle, values, 1e-10, ABSENT)


def test_the_cases_reach_every_branch_of_the_formulas(net: Any, oracle: ModuleType) -> None:
    reached: dict[str, set[str]] = {name: set() for name in NAMES}
    for values in CASES:
        found = beside_the_oracle(copy.deepcopy(net), oracle, values, 1e-10).cases
        reached[values["name"]] |= found
    fixed = {"zero", "full", "truncated"}
    assert reached["momo"] == reached["momo-adam"] == fixed
    online = {"full", "truncated", "reset", "at lb", "above lb"}
    assert reached["momo-star"] >= online
    assert reached["momo-adam-star"] >= online


@pytest.mark.parametrize("name", ["momo", "momo-adam"])
def test_a_truncated_step_of_several_groups_ends_where_their_model_reaches_the_bound(
    net: Any, name: str
) -> None:
    weights = list(net.parameters())
    groups = [
        {"params": weights[:2], "lr": 50.0, "weight_decay": 0.3},
        {"params": weights[2:7], "lr": 7.0, "weight_decay": 0.0},
        {"params": weights[7:], "lr": 90.0},
    ]
    params: Any = optimizer_params({"name": name, "lb": 0.9, "weight_decay": 0.01}, "")
    optimizer: Any = (
        Momo(groups, params, beta=0.9, from_zero=True)
        if name == "momo"
        else MomoAdam(groups, params)
    )
    tangents, beta = [], 0.9 if name == "momo" else 0.95
    for step, loss in enumerate((3.0, 2.5, 2.7, 2.6)):
        random_gradients(net, step)
        tangents.append((loss, [(w.grad.clone(), w.detach().clone()) for w in weights]))
        optimizer.step(lambda loss=loss: loss)
    shares = [(1 - beta) * beta**age for age in reversed(range(len(tangents)))]
    height = 0.0
    for share, (loss, at) in zip(shares, tangents, strict=True):
        moved = zip(weights, at, strict=True)
        height += share * (loss + sum((g * (w.detach() - x)).sum().item() for w, (g, x) in moved))
    assert height == pytest.approx(0.9 * sum(shares), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_groups_that_do_not_differ_step_as_one(net: Any, name: str) -> None:
    twin = copy.deepcopy(net)
    one, params = momo(net, name, lr=0.5), optimizer_params({"name": name, "lr": 0.5}, "")
    weights = list(twin.parameters())
    options = {} if "adam" in name else {"beta": 0.9, "from_zero": False}
    groups = [{"params": weights[:4]}, {"params": weights[4:]}]
    two = type(one)(groups, params, **options)
    for step, loss in enumerate(LOSSES):
        for model, optimizer in ((net, one), (twin, two)):
            random_gradients(model, step)
            optimizer.step(lambda loss=loss: loss)
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_without_gradient_is_left_out_of_the_model_of_that_step(
    net: Any, name: str
) -> None:
    values = {"lr": 5.0, "lb": 1.0, "weight_decay": 0.1}
    optimizer = momo(net, name, **values)
    for step in range(3):
        random_gradients(net, step)
        optimizer.step(lambda: 4.0)
    others = copy.deepcopy(net)
    others.square = None
    alone = momo(others, name, **values)
    alone.state["model"] = copy.deepcopy(optimizer.state["model"])
    for theirs, (key, ours) in zip(
        others.parameters(),
        [p for p in net.named_parameters() if "square" not in p[0]],
        strict=True,
    ):
        alone.state[theirs] = copy.deepcopy(optimizer.state[ours])
        ours.grad = torch.ones_like(ours) * (len(key) % 3 - 1)
        theirs.grad = ours.grad.clone()
    net.square.weight.grad = None
    frozen = net.square.weight.detach().clone()
    optimizer.step(lambda: 4.1)
    alone.step(lambda: 4.1)
    assert torch.equal(net.square.weight.detach(), frozen)
    assert torch.equal(net.up.weight, others.up.weight)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("closure", [None, lambda: None], ids=["no closure", "no loss"])
def test_a_step_without_a_loss_is_refused_and_changes_nothing(
    net: Any, name: str, closure: Callable[[], Any] | None
) -> None:
    optimizer, before = momo(net, name), copy.deepcopy(net.state_dict())
    random_gradients(net, 0)
    with pytest.raises(RuntimeError, match=f"the step of {name} depends on the loss: call step"):
        optimizer.step(closure)
    assert not optimizer.state
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_the_closure_may_compute_the_gradients(net: Any) -> None:
    twin, tokens = copy.deepcopy(net), torch.arange(8).reshape(2, 4)

    def backward(model: nn.Module) -> torch.Tensor:
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    momo(net, "momo").step(lambda: backward(net))
    loss = backward(twin)
    momo(twin, "momo").step(loss.item)
    assert torch.equal(net.up.weight, twin.up.weight)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_reaches_every_weight(net: Any, name: str, loss: float) -> None:
    optimizer = momo(net, name)
    random_gradients(net, 0)
    optimizer.step(lambda: loss)
    assert all(weight.isnan().all() for weight in net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_for_all_weights_survives_saving(net: Any, name: str, tmp_path: Path) -> None:
    optimizer = momo(net, name, lb=-3.0)
    for step in range(3):
        random_gradients(net, step)
        optimizer.step(lambda: torch.tensor(2.5))
    torch.save(optimizer.state_dict(), tmp_path / "saved")
    again = momo(copy.deepcopy(net), name)
    again.load_state_dict(torch.load(tmp_path / "saved", weights_only=True))
    kept, loaded = optimizer.state["model"], again.state["model"]
    assert kept == loaded
    assert set(kept) == {"step", "loss_avg"} | ({"lower_bound"} if "star" in name else set())


@pytest.mark.parametrize("name", [*NAMES, "muon-momo", "muonmax-momo"])
def test_what_a_step_took_stays_in_one_tensor_that_no_checkpoint_has(net: Any, name: str) -> None:
    optimizer, found = momo(net, name, lr=0.5), set()
    assert optimizer.step_scale is None
    for step in range(3):
        random_gradients(net, step)
        optimizer.step(lambda step=step: torch.tensor(4.0 - step))
        found.add(optimizer.step_scale)
    [held] = found  # where a captured step's replays write, too
    assert held.shape == ()
    assert "step_scale" not in str(optimizer.state_dict())
    _, copied = copy.deepcopy((net, optimizer))
    before = held.clone()
    copied.step_scale.add_(1)
    assert torch.equal(held, before)


@pytest.mark.parametrize("name", ["momo", "momo-adam"])
@pytest.mark.parametrize("lr", [1.0, 1e6])
def test_no_learning_rate_is_too_large_where_the_bound_is_tight(name: str, lr: float) -> None:
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(40, 10, generator=generator, dtype=torch.float64)
    y = a @ torch.randn(10, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(10, 1, bias=False).double()
    optimizer = momo(model, name, lr=lr, lr_schedule="constant")
    losses = []
    for _ in range(400):
        optimizer.zero_grad()
        loss = (model(a) - y).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(lambda loss=loss: loss)
        losses.append(loss.item())
    assert losses[-1] < 1e-6 * losses[0]


@pytest.mark.parametrize(("name", "lr"), [("momo-star", 0.5), ("momo-adam-star", 0.05)])
def test_the_estimate_comes_near_the_lowest_loss(name: str, lr: float) -> None:
    target = torch.linspace(-1, 1, 8, dtype=torch.float64)
    model = nn.Linear(8, 1, bias=False).double()
    optimizer = momo(model, name, lr=lr)
    for _ in range(300):
        optimizer.zero_grad()
        loss = 2.0 + 0.5 * (model.weight - target).square().sum()
        loss.backward()
        optimizer.step(lambda loss=loss: loss)
        assert optimizer.state["model"]["lower_bound"] >= 0
    assert optimizer.state["model"]["lower_bound"] == pytest.approx(2.0, abs=0.05)
    assert loss.item() < 2.05


@pytest.mark.parametrize("name", ["momo-star", "momo-adam-star"])
def test_a_step_at_learning_rate_0_teaches_nothing_about_the_lowest_loss(
    net: Any, name: str
) -> None:
    optimizer = momo(net, name, lb=0.5)
    optimizer.param_groups[0]["lr"] = 0.0
    for step in range(3):
        random_gradients(net, step)
        optimizer.step(lambda: 4.0)
    assert optimizer.state["model"]["lower_bound"] == 0.5


@pytest.mark.parametrize(
    ("gap", "slope", "expected"),
    [
        (3.0, 2.0, 1.5),
        (9.0, 2.0, 4.0),
        (-1.0, 2.0, 0.0),
        (0.0, 2.0, 0.0),
        (1.0, 0.0, 4.0),
        (0.0, 0.0, 4.0),
        (1e-30, 1e-300, 4.0),
        (float("inf"), 2.0, float("nan")),
        (float("nan"), 0.0, float("nan")),
        (-1.0, float("inf"), float("nan")),
    ],
)
def test_a_truncated_step(gap: float, slope: float, expected: float) -> None:
    wide = {"dtype": torch.float64}
    step = truncated_step(torch.tensor(gap, **wide), torch.tensor(slope, **wide), 4.0)
    assert step.item() == pytest.approx(expected, nan_ok=True)
