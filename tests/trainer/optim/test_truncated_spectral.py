"""The spectral family with product norms: dual norms, where a step ends, numbers in bf16."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from trainer.optim import build_optimizer, noneuclidean, optimizer_params
from trainer.optim.groups import split_parameters
from trainer.optim.noneuclidean import SpectralDescent
from trainer.optim.norms import over, product_norm
from trainer.optim.truncation import inner_products

NAMES = ("muon-momo", "muonmax-momo")
CASES: list[dict[str, Any]] = [
    {"name": "muon-momo"},
    {"name": "muon-momo", "lr": 5.0, "rest_norm": "adam_2"},
    {"name": "muon-momo", "weight_decay": 0.7, "momentum": 0.6, "muon_lr_ratio": 3.0},
    {"name": "muon-momo", "nuc_approx": "last", "muon_lr": 0.2, "truncate_loss": 1.0},
    {"name": "muon-momo", "prod_norm": "l2", "rest_norm": "adam_inf", "truncate_loss": -4.0},
    {"name": "muon-momo", "prod_norm": "hybrid", "rest_norm": "adam_2"},
    {"name": "muon-momo", "rest_norm": "adam_2", "betas": [0.95, 0.6], "eps": 1e-2},
    {"name": "muon-momo", "truncate_loss": None, "prod_norm": "l2"},
    {"name": "muon-momo", "truncate_loss": None, "rest_norm": "adam_2", "lmo": False},
    {"name": "muonmax-momo"},
    {"name": "muonmax-momo", "muon_lr_ratio": 4.0, "weight_decay": 0.7, "truncate_loss": 1.0},
    {"name": "muonmax-momo", "momentum": 0.6, "betas": [0.6, 0.8], "eps": 1e-3},
    {"name": "muonmax-momo", "nuc_approx": "last", "muon_lr": 0.2, "truncate_loss": -90.0},
    {"name": "muonmax-momo", "nuc_approx": "frobenius", "polar_method": "jordan", "ns_steps": 3},
    {"name": "muonmax-momo", "polar_method": "svd"},
    {"name": "muonmax-momo", "prod_norm": "l2", "muon_lr_ratio": 9.0},
    {"name": "muonmax-momo", "prod_norm": "linf", "rest_norm": "linf", "gptopt_compat": True},
    {"name": "muonmax-momo", "prod_norm": "linf", "truncate_loss": None, "betas": [0.5, 0.9]},
    {"name": "muonmax-momo", "truncate_loss": None, "lmo": True},
]
LOSSES = (4.0, 3.0, 1.0, 6.0, 0.1, 5.0, 9.0, 0.4)
FACTORS = (1.0, 1.0, 0.5, 0.2, 1.0, 0.0, 1.0, 0.1)


def built(model: nn.Module, name: str, **values: Any) -> Any:
    return build_optimizer(model, optimizer_params({"name": name, **values}, ""))


def random_gradients(model: nn.Module, seed: int, size: float = 0.01) -> None:
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
    params: Any = optimizer_params({"lr": 0.05, **values}, "")
    optimizer, reference = build_optimizer(net, params), oracle.Truncated(params)
    matrices = set(split_parameters(net).matrices)
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
        for group in optimizer.param_groups:
            group["lr"] = params.lr * factor
        assert optimizer.step(lambda loss=loss: loss) is loss
        tau = reference.step(weights, gradients, matrices, value, params.lr * factor)
        if params.truncate_loss is None:
            assert optimizer.step_scale is None
        else:
            taken = params.lr * factor * optimizer.step_scale.item()
            assert taken == pytest.approx(tau, rel=tolerance, abs=tolerance * params.lr)
        for name, weight in net.named_parameters():
            expected, ours = torch.from_numpy(weights[name]), weight.detach().double()
            torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance, msg=name)
    return reference


@pytest.mark.parametrize("values", CASES, ids=str)
def test_steps_follow_the_formulas(net: Any, oracle: ModuleType, values: dict[str, Any]) -> None:
    beside_the_oracle(net, oracle, values, 1e-9)


@pytest.mark.parametrize("values", CASES, ids=str)
def test_fp32_follows_the_formulas(net: Any, oracle: ModuleType, values: dict[str, Any]) -> None:
    beside_the_oracle(net.float(), oracle, values, 1e-3)


ABSENT = (("unused", "square"), (), ("up", "wte"), ("unused", "lm_head", "norm"))
"""Beginnings of the names without gradient, step by step: at first, later, matrices and others."""


@pytest.mark.parametrize("values", CASES, ids=str)
def test_steps_follow_the_formulas_where_gradients_come_and_go(
    net: Any, oracle: ModuleType, values: dict[str, Any]
) -> None:
    beside_the_oracle(net, oracle, values, 1e-9, ABSENT)


def test_the_cases_reach_every_branch_of_the_formulas(net: Any, oracle: ModuleType) -> None:
    reached: dict[str, set[str]] = {name: set() for name in NAMES}
    for values in CASES:
        found = beside_the_oracle(copy.deepcopy(net), oracle, values, 1e-9).cases
        reached[values["name"]] |= found
    every = {"zero", "full", "truncated"}
    assert [reached[name] for name in NAMES] == [every, every]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prod_norm", ["linf", "l2", "hybrid"])
@pytest.mark.parametrize("norm", ["linf", "adam_inf", "adam_2"])
def test_a_truncated_step_of_several_groups_ends_where_their_model_reaches_the_bound(
    net: Any, name: str, prod_norm: Any, norm: str
) -> None:
    split = split_parameters(net)
    matrices, rest = list(split.matrices.values()), list(split.rest.values())
    spectral = {"norm": "spectral", "scale": 0.7, "momentum": 0.9, "polar": "jordan"}
    spectral |= {"ns_steps": 5, "gptopt_compat": False}
    other = {"norm": norm, "scale": 1.0, "momentum": 0.9, "beta2": 0.8, "eps": 1e-8}
    groups: list[dict[str, Any]] = [
        {"params": matrices[:2], "lr": 500.0, **spectral},
        {"params": matrices[2:], "lr": 70.0, **spectral},
        {"params": rest[:2], "lr": 900.0, **other},
        {"params": rest[2:], **other},
    ]
    optimizer = SpectralDescent(
        groups, 300.0, 0.0, lmo=name == "muon-momo", prod_norm=prod_norm, truncate_loss=0.9
    )
    weights, tangents = [*matrices, *rest], []
    for step, loss in enumerate((3.0, 2.9, 3.1, 3.0)):
        random_gradients(net, step)
        tangents.append((loss, [(w.grad.clone(), w.detach().clone()) for w in weights]))
        before = [w.detach().clone() for w in weights]
        optimizer.step(lambda loss=loss: loss)
    assert all(not torch.equal(w, old) for w, old in zip(weights, before, strict=True))
    # The averages start at their first values: the first tangent's share is what is left over.
    shares = [0.9**3, 0.1 * 0.9**2, 0.1 * 0.9, 0.1]
    height = 0.0
    for share, (loss, at) in zip(shares, tangents, strict=True):
        moved = zip(weights, at, strict=True)
        height += share * (loss + sum((g * (w.detach() - x)).sum().item() for w, (g, x) in moved))
    assert height == pytest.approx(0.9, abs=1e-9)


@pytest.mark.parametrize("values", CASES, ids=str)
def test_groups_that_do_not_differ_step_as_one(net: Any, values: dict[str, Any]) -> None:
    twin = copy.deepcopy(net)
    values = {"lr": 0.5, **values}
    one, two = built(net, **values), built(twin, **values)
    [matrices, rest] = two.param_groups
    two.param_groups.append({**rest, "params": rest["params"][2:]})
    two.param_groups.insert(0, {**matrices, "params": matrices["params"][:1]})
    matrices["params"], rest["params"] = matrices["params"][1:], rest["params"][:2]
    for step, loss in enumerate(LOSSES):
        for model, optimizer in ((net, one), (twin, two)):
            random_gradients(model, step)
            optimizer.step(lambda loss=loss: loss)
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_without_gradient_is_left_out_of_the_norms_and_the_model_of_that_step(
    net: Any, name: str
) -> None:
    values = {"lr": 5.0, "truncate_loss": 1.0, "weight_decay": 0.1}
    optimizer = built(net, name, **values)
    for step in range(3):
        random_gradients(net, step)
        optimizer.step(lambda: 4.0)
    others = copy.deepcopy(net)
    others.square = None
    alone = built(others, name, **values)
    alone.state["model"] = copy.deepcopy(optimizer.state["model"])
    names = [key for key, _ in net.named_parameters() if "square" not in key]
    for key in names:
        ours, theirs = net.get_parameter(key), others.get_parameter(key)
        alone.state[theirs] = copy.deepcopy(optimizer.state[ours])
        ours.grad = torch.ones_like(ours) * (len(key) % 3 - 1)
        theirs.grad = ours.grad.clone()
    net.square.weight.grad = None
    frozen = net.square.weight.detach().clone()
    optimizer.step(lambda: 4.1)
    alone.step(lambda: 4.1)
    assert torch.equal(net.square.weight.detach(), frozen)
    for key in names:
        ours, theirs = net.get_parameter(key), others.get_parameter(key)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("values", CASES, ids=str)
def test_dual_norm_and_direction_share_one_polar_factor(
    net: Any, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    factored: list[int] = []
    real = noneuclidean.polar_factors

    def counted(matrices: Sequence[torch.Tensor], *arguments: Any, **named: Any) -> Any:
        factored.append(len(matrices))
        return real(matrices, *arguments, **named)

    monkeypatch.setattr(noneuclidean, "polar_factors", counted)
    optimizer = built(net, **values)
    for step in range(3):
        random_gradients(net, step)
        optimizer.step(lambda: 4.0)
    assert factored == [5, 5, 5]


def test_dual_norms_of_bf16_are_summed_in_fp32() -> None:
    ones = [torch.ones(70, 100, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)]
    found = inner_products(ones, ones)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.tensor([7000.0, 3.0]))


def test_the_nuclear_norm_is_the_sum_of_the_singular_values(net: Any) -> None:
    values = {"lr": 1.0, "prod_norm": "linf", "truncate_loss": None, "ns_steps": 12}
    optimizer = built(net, "muonmax-momo", **values)
    before, wanted = net.square.weight.detach().clone(), 0.0
    for weight in split_parameters(net).matrices.values():
        weight.grad = torch.randn_like(weight)
        wanted += torch.linalg.matrix_norm(weight.grad, "nuc").item()
    optimizer.step()
    moved = torch.linalg.svdvals(net.square.weight.detach() - before)
    torch.testing.assert_close(moved, torch.full_like(moved, wanted), rtol=1e-6, atol=0)


def test_momenta_that_are_all_zero_move_nothing(net: Any) -> None:
    for values in CASES:
        optimizer = built(net, **{**values, "weight_decay": 0.0})
        before = copy.deepcopy(net.state_dict())
        for weight in net.parameters():
            weight.grad = torch.zeros_like(weight)
        optimizer.step(lambda: 1.0)
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("closure", [None, lambda: None], ids=["no closure", "no loss"])
def test_a_step_without_a_loss_is_refused_and_changes_nothing(
    net: Any, name: str, closure: Callable[[], Any] | None
) -> None:
    optimizer, before = built(net, name), copy.deepcopy(net.state_dict())
    random_gradients(net, 0)
    with pytest.raises(RuntimeError, match=f"the step of {name} depends on the loss: call step"):
        optimizer.step(closure)
    assert not optimizer.state
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_without_a_bound_no_loss_is_needed(net: Any, name: str) -> None:
    before = net.up.weight.detach().clone()
    random_gradients(net, 0)
    built(net, name, truncate_loss=None).step()
    assert not torch.equal(before, net.up.weight)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_reaches_every_weight(net: Any, name: str, loss: float) -> None:
    optimizer = built(net, name)
    random_gradients(net, 0)
    optimizer.step(lambda: loss)
    assert all(weight.isnan().all() for weight in net.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_bound_above_the_loss_stops_the_weights_but_never_reverses_them(
    net: Any, name: str
) -> None:
    optimizer, before = built(net, name, lr=0.1), copy.deepcopy(net.state_dict())
    for step in range(3):
        random_gradients(net, step)
        optimizer.step(lambda: 3.0)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_for_all_weights_survives_saving(net: Any, name: str, tmp_path: Path) -> None:
    optimizer = built(net, name, nuc_approx="last")
    for step in range(3):
        random_gradients(net, step)
        optimizer.step(lambda: torch.tensor(4.5))
    torch.save(optimizer.state_dict(), tmp_path / "saved")
    twin = copy.deepcopy(net)
    again = built(twin, name, nuc_approx="last")
    again.load_state_dict(torch.load(tmp_path / "saved", weights_only=True))
    assert set(again.state["model"]) == {"loss_avg"}
    for model, each in ((net, optimizer), (twin, again)):
        random_gradients(model, 9)
        each.step(lambda: 4.0)
    assert all(map(torch.equal, net.parameters(), twin.parameters()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lr", [1.0, 1e6])
def test_no_learning_rate_is_too_large_where_the_bound_is_tight(name: str, lr: float) -> None:
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(40, 10, generator=generator, dtype=torch.float64)
    y = a @ torch.randn(10, 3, generator=generator, dtype=torch.float64)
    model = nn.Linear(10, 3, bias=False).double()
    optimizer = built(model, name, lr=lr, truncate_loss=0.0, momentum=0.5, betas=[0.5, 0.9])
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (model(a) - y).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(lambda loss=loss: loss)
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


def test_product_norms_of_known_duals() -> None:
    matrices, rest = torch.tensor([3.0, 5.0]), torch.tensor([6.0, 0.0])
    for kind, total in (("linf", 14.0), ("l2", 70**0.5), ("hybrid", 10.0)):
        found, shares = product_norm(kind, [matrices, rest], [True, False])  # type: ignore[arg-type]
        assert found.item() == pytest.approx(total)
        own = {"linf": (found, found), "l2": (matrices, rest), "hybrid": (8.0, rest)}[kind]
        for ours, expected in zip(shares, own, strict=True):
            torch.testing.assert_close(ours, torch.as_tensor(expected))
    for flags in ([True], [False]):
        found, _ = product_norm("hybrid", [matrices], flags)
        assert found.item() == pytest.approx(8.0 if flags[0] else 34**0.5)


def test_a_quotient_by_zero_is_finite_and_one_by_nan_is_not() -> None:
    quotient = over(torch.tensor([2.0, 2.0, 2.0]), torch.tensor([0.0, 4.0, float("nan")]))
    torch.testing.assert_close(quotient, torch.tensor([2.0, 0.5, float("nan")]), equal_nan=True)


@pytest.mark.parametrize("name", ["muon", "scion", *NAMES, "muon-torch", "normuon"])
@pytest.mark.parametrize("seed", range(4))
def test_matrices_of_any_shape_in_bf16_move_nearly_as_in_fp64(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.randint(1, 12, (6, 2), generator=generator)
    layers = [nn.Linear(rows, columns) for rows, columns in shapes.numpy()]
    model = nn.ModuleDict({"wte": nn.Embedding(5, 3), "layers": nn.ModuleList(layers)})
    model.to(torch.bfloat16)
    twin = copy.deepcopy(model).double()
    values = {"lr": 0.5, "truncate_loss": 0.0} if name in NAMES else {"lr": 0.5}
    ours, theirs = built(model, name, **values), built(twin, name, **values)
    before = [weight.detach().clone() for weight in twin.parameters()]
    for step in range(3):
        random_gradients(model, step, size=1.0)
        for weight, other in zip(model.parameters(), twin.parameters(), strict=True):
            assert weight.grad is not None
            other.grad = weight.grad.double()
        ours.step(lambda: torch.tensor(3.0))
        theirs.step(lambda: torch.tensor(3.0))
    for weight, other, old in zip(model.parameters(), twin.parameters(), before, strict=True):
        assert (weight - other).norm() < 0.1 * (other - old).norm() + 0.02 * old.norm()
