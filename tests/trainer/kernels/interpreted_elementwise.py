"""Run by test_elementwise.py in a process of its own: Triton's interpreter takes CPU tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainer.kernels import AdamWScalars, adamw_step, chunks
from trainer.kernels.chunks import BLOCK
from trainer.kernels.operands import Slot
from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.adamw import KernelAdamW

# The interpreter's time goes by blocks: weights of several chunks are to have few.
CHUNK = chunks.CHUNK = 2 * BLOCK

CASES: list[dict[str, Any]] = [
    {"name": "adam", "betas": [0.9, 0.97], "weight_decay": 0.1},
    {"name": "adamw", "betas": [0.9, 0.999], "weight_decay": 0.1},
    {"name": "adamw", "betas": [0.0, 0.5], "eps": 1e-3},
    {"name": "nadam", "betas": [0.8, 0.97], "weight_decay": 0.1, "momentum_decay": 4e-3},
    {"name": "nadamw", "betas": [0.8, 0.97], "weight_decay": 0.1},
    {"name": "lion", "betas": [0.6, 0.9], "weight_decay": 0.1},
    {"name": "sign-gd", "momentum": 0.7, "weight_decay": 0.1},
    {"name": "sign-gd", "momentum": 0.7, "nesterov": True},
    {"name": "sign-gd-nonlmo", "lr": 1e-5, "weight_decay": 0.1},
    {"name": "sign-gd-nonlmo", "lr": 1e-5, "nesterov": True},
    {"name": "momo", "weight_decay": 0.1, "lb": 0.5},
    {"name": "momo-star", "weight_decay": 0.1, "bias_correction": True, "beta": 0.6, "lb": -2.0},
    {"name": "momo-adam", "weight_decay": 0.1, "lb": 0.5},
    {"name": "momo-adam", "weight_decay": 0.1, "divide": False, "lr": 1e-3},
    {"name": "momo-adam-star", "weight_decay": 0.1, "lb": -2.0},
    {"name": "ademamix", "weight_decay": 0.1, "alpha_warmup": 3, "beta3_warmup": 4},
    {"name": "ademamix", "betas": [0.0, 0.5], "beta3": 0.0, "eps": 1e-3},
    {"name": "mars", "weight_decay": 0.1},
    {"name": "mars", "optimize_1d": True, "gamma": 0.5},
    {"name": "schedule-free-adamw", "weight_decay": 0.1, "warmup_steps": 3},
]
ONE_OF_EACH_FAMILY = [CASES[i] for i in (1, 5, 9, 10, 14, 15, 18, 19)]
HYPER: dict[str, Any] = {"lr": 3e-2, "betas": (0.9, 0.97), "eps": 1e-8, "weight_decay": 0.1}
SHAPES = [(CHUNK // 2 + 3, 2), (BLOCK,), (7, 5), (), (0,)]
LOSSES = (4.0, 2.0, 1.0, 6.0)


class Weights(nn.Module):
    def __init__(self, shapes: Iterable[tuple[int, ...]]) -> None:
        super().__init__()
        self.all = nn.ParameterList(nn.Parameter(random(s, i)) for i, s in enumerate(shapes))


def random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(model: nn.Module, values: dict[str, Any], backend: str = "triton") -> Any:
    """The optimizer as users get it, or with ``twin`` the kernel's reference in torch."""
    wanted = "torch" if backend == "torch" else "triton"
    values = {"lr": 0.03, **values, "backend": wanted}
    optimizer: Any = build_optimizer(model, optimizer_params(values, ""))
    if backend == "twin":
        optimizer.backend = "torch"
    return optimizer


def set_gradients(model: nn.Module, step: int, *, absent: bool = False) -> None:
    """Every third step the second weight has none if ``absent``."""
    for i, weight in enumerate(model.parameters()):
        gone = absent and i == 1 and step % 3 == 1
        weight.grad = None if gone else random(tuple(weight.shape), 100 * step + 50 + i)


def train(model: nn.Module, optimizer: Any, steps: range, clip: float | None = None) -> None:
    for step in steps:
        set_gradients(model, step, absent=True)
        if clip is not None:
            optimizer.clip_grad_norm(clip)
        optimizer.step(lambda step=step: torch.tensor(LOSSES[step % 4]))


def assert_alike(ours: nn.Module, theirs: nn.Module, tolerance: float = 1e-5) -> None:
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize(
    ("values", "clip"), [*((values, 20.0) for values in CASES), (CASES[1], None)], ids=str
)
def test_a_step_is_the_oracles_and_the_twins(
    values: dict[str, Any], clip: float | None, oracle_of: Any
) -> None:
    model, twin_model = Weights(SHAPES), Weights(SHAPES)
    ours, twin = build(model, values), build(twin_model, values, "twin")
    params: Any = optimizer_params({"lr": 0.03, **values}, "")
    oracle = oracle_of(params)
    named = dict(model.named_parameters())
    x = {name: w.detach().double().numpy().copy() for name, w in named.items()}
    for step, factor in enumerate((1.0, 0.3)):
        for each in (model, twin_model):
            set_gradients(each, step)
        g = {name: w.grad.double().numpy() for name, w in named.items() if w.grad is not None}
        norm = np.sqrt(sum((each**2).sum() for each in g.values()))
        for optimizer in (ours, twin):
            for group in optimizer.param_groups:
                group["lr"] = params.lr * factor
            if clip is not None:
                told = optimizer.clip_grad_norm(clip)
                np.testing.assert_allclose(told.item(), norm, rtol=1e-6)
            optimizer.step(lambda step=step: torch.tensor(LOSSES[step]))
        size = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
        g = {name: size * each for name, each in g.items()}
        loss = [LOSSES[step]] if params.name.startswith("momo") else []
        oracle.step(x, g, *loss, params.lr * factor)
    for name, weight in named.items():
        expected = torch.from_numpy(np.asarray(x[name]))
        torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
    if params.name in {"adam", "adamw", "nadam", "nadamw", "momo-adam", "lion"}:
        state = oracle.b if params.name == "lion" else getattr(oracle, "m", None) or oracle.d
        for name, weight in named.items():
            mean = ours.state[weight]["exp_avg"].double()
            expected = torch.from_numpy(np.asarray(state[name]))
            torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)
    assert_alike(model, twin_model)


def in_groups(model: nn.Module, values: dict[str, Any], backend: str) -> Any:
    """An optimizer of several groups, of which one is empty and one has numbers of its own."""
    optimizer = build(model, values, backend)
    group = optimizer.param_groups[-1]
    moved = {**group, "lr": group["lr"] / 2, "weight_decay": 0.3}
    moved["params"], group["params"] = group["params"][2:], group["params"][:2]
    optimizer.add_param_group({**moved, "params": []})
    optimizer.add_param_group(moved)
    return optimizer


@pytest.mark.parametrize("values", CASES, ids=str)
def test_groups_and_absent_gradients_are_the_twins_across_checkpoints(
    values: dict[str, Any],
) -> None:
    shapes = [(17, 9), (5,), (), (3,)]
    models = Weights(shapes), Weights(shapes)
    ours = in_groups(models[0], values, "triton")
    twin = in_groups(models[1], values, "twin")
    train(models[1], twin, range(4), clip=1.5)
    for steps, backend in ((range(2), "torch"), (range(2, 3), "triton"), (range(3, 4), "torch")):
        train(models[0], ours, steps, clip=1.5)
        saved = copy.deepcopy(ours.state_dict())
        ours = in_groups(models[0], values, backend)
        ours.load_state_dict(saved)
    assert_alike(*models)


@pytest.mark.parametrize("values", [CASES[1], CASES[8], CASES[14], CASES[17]], ids=str)
def test_two_runs_agree_to_the_bit(values: dict[str, Any]) -> None:
    models = Weights([(17, 9), (CHUNK + 1,)]), Weights([(17, 9), (CHUNK + 1,)])
    for model in models:
        train(model, build(model, values), range(2), clip=7.0)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("values", ONE_OF_EACH_FAMILY, ids=str)
def test_a_rate_in_the_devices_memory_is_read_there(values: dict[str, Any]) -> None:
    models = Weights([(17, 9), (3,)]), Weights([(17, 9), (3,)])
    rate = torch.tensor(0.02 if "lr" not in values else 2e-5)
    for model, lr in zip(models, (rate, rate.item()), strict=True):
        optimizer = build(model, values)
        for group in optimizer.param_groups:
            group["lr"] = lr
        train(model, optimizer, range(2))
    assert_alike(*models, tolerance=1e-6)


@pytest.mark.parametrize("values", ONE_OF_EACH_FAMILY, ids=str)
def test_gradients_and_weights_in_another_order_or_off_alignment(values: dict[str, Any]) -> None:
    def weights() -> Weights:
        model = Weights([])
        tensors = (random((30, 50), 1).t(), random((30, 50), 3), random((2 * BLOCK + 1,), 2)[1:])
        model.all.extend(nn.Parameter(tensor) for tensor in tensors)
        return model

    models = weights(), weights()
    for model, backend in zip(models, ("triton", "twin"), strict=True):
        optimizer = build(model, values, backend)
        for step in range(2):
            gradients = (random((50, 30), step), random((50, 30), step + 10).t())
            for weight, gradient in zip(model.all, gradients, strict=False):
                weight.grad = gradient
            model.all[2].grad = random((2 * BLOCK,), step + 20)
            optimizer.clip_grad_norm(1.0)
            optimizer.step(lambda: torch.tensor(3.0))
    assert_alike(*models)


@pytest.mark.parametrize("values", ONE_OF_EACH_FAMILY, ids=str)
def test_a_step_changes_nothing_beside_its_tensors(values: dict[str, Any]) -> None:
    memory, gradients = random((BLOCK + 40,), 0), random((BLOCK + 40,), 1)
    before = memory.clone(), gradients.clone()
    model = Weights([])
    model.all.append(nn.Parameter(memory[8 : BLOCK + 13]))
    model.all[0].grad = gradients[8 : BLOCK + 13]
    optimizer = build(model, values)
    optimizer.clip_grad_norm(0.1)
    optimizer.step(lambda: torch.tensor(3.0))
    assert not torch.equal(memory, before[0])
    assert torch.equal(memory[:8], before[0][:8])
    assert torch.equal(memory[BLOCK + 13 :], before[0][BLOCK + 13 :])
    assert torch.equal(gradients, before[1])


# The interpreter computes in numpy, which warns of inf / inf.
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("name", ["adam", "nadamw", "ademamix", "lion", "sign-gd"])
def test_a_non_finite_gradient_stays_with_its_own_number(name: str) -> None:
    model = Weights([(BLOCK + 9,)])
    model.all[0].grad = random((BLOCK + 9,), 1)
    model.all[0].grad[3] = float("nan")
    model.all[0].grad[BLOCK + 2] = float("nan")
    optimizer = build(model, {"name": name})
    optimizer.step()
    key = "momentum_buffer" if name == "sign-gd" else "exp_avg"
    lost = optimizer.state[model.all[0]][key].isnan().nonzero().flatten()
    assert lost.equal(torch.tensor([3, BLOCK + 2]))
    assert model.all[0].isnan().sum() == (0 if name in {"lion", "sign-gd"} else 2)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_mars_loses_a_weight_whose_gradient_is_not_finite_and_no_other() -> None:
    model = Weights([(BLOCK, 2), (3, 1)])
    set_gradients(model, 0)
    model.all[0].grad[2, 1] = float("nan")
    build(model, {"name": "mars"}).step()
    assert model.all[0].isnan().all()
    assert model.all[1].isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_norm_that_is_not_finite_reaches_every_weight() -> None:
    model = Weights([(BLOCK + 9,), (3,)])
    set_gradients(model, 0)
    model.all[0].grad[BLOCK + 1] = float("nan")
    optimizer = build(model, {"name": "adamw"})
    assert optimizer.clip_grad_norm(1.0).isnan()
    optimizer.step()
    assert model.all[1].isnan().all()


def test_clipping_holds_for_one_step_and_leaves_the_gradient_alone() -> None:
    models = Weights([(17, 9), (5,)]), Weights([(17, 9), (5,)])
    ours = build(models[0], {"name": "adamw", **HYPER})
    theirs = torch.optim.AdamW(models[1].parameters(), **HYPER)
    for step, limit in enumerate((0.1, None, 1e3, float("inf"))):
        for model in models:
            set_gradients(model, step)
        before = models[0].all[0].grad.clone()
        if limit is not None:
            norm = ours.clip_grad_norm(limit)
            expected = torch.nn.utils.clip_grad_norm_(models[1].parameters(), limit)
            torch.testing.assert_close(norm, expected)
        ours.step()
        theirs.step()
        assert torch.equal(models[0].all[0].grad, before)
    assert_alike(*models)


@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {}),
        ("nadam", torch.optim.NAdam, {}),
        ("nadamw", torch.optim.NAdam, {"decoupled_weight_decay": True}),
    ],
)
def test_torchs_checkpoints_and_ours_are_one(name: str, cls: Any, options: Any) -> None:
    shapes = [(17, 9), (5,)]
    undisturbed, model = Weights(shapes), Weights(shapes)
    train(undisturbed, cls(undisturbed.parameters(), **HYPER, **options), range(9))
    first, last = (cls(model.parameters(), **HYPER, **options) for _ in range(2))
    train(model, first, range(3))
    between = build(model, {"name": name, **HYPER})
    between.load_state_dict(copy.deepcopy(first.state_dict()))
    train(model, between, range(3, 6))
    last.load_state_dict(copy.deepcopy(between.state_dict()))
    train(model, last, range(6, 9))
    assert_alike(model, undisturbed)


def test_adamw_on_tensors_of_no_optimizer(adamw_oracle: Any) -> None:
    shapes = [(7, 5), (BLOCK + 1,), ()]
    slots = [
        Slot(random(s, i), random(s, i), torch.zeros(s), torch.zeros(s))
        for i, s in enumerate(shapes)
    ]
    oracles = [adamw_oracle(slot.weight) for slot in slots]
    for step in range(1, 4):
        gradients = [random(shape, 10 * step + i) for i, shape in enumerate(shapes)]
        now = [s._replace(gradient=g) for s, g in zip(slots, gradients, strict=True)]
        scalars = AdamWScalars(3e-2, 0.9, 0.97, 1e-8, 0.1, step)
        adamw_step(now, scalars, "triton", torch.tensor(0.25))
        for oracle, gradient in zip(oracles, gradients, strict=True):
            oracle.step(gradient * 0.25, **HYPER)
    for slot, oracle in zip(slots, oracles, strict=True):
        torch.testing.assert_close(slot.weight.double(), oracle.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(slot.exp_avg_sq.double(), oracle.square, rtol=1e-5, atol=1e-6)


def test_the_first_steps_corrections_keep_six_digits() -> None:
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.ones(4)
    optimizer = KernelAdamW(
        [weight], lr=1.0, betas=(0.999, 0.9999), eps=1e-12, weight_decay=0.0, backend="triton"
    )
    for step in range(1, 4):
        optimizer.step()
        torch.testing.assert_close(weight, torch.full((4,), -float(step)), rtol=1e-6, atol=0)


def test_weights_of_a_gradient_that_moves_keep_their_state() -> None:
    model = Weights([(5,)])
    optimizer = build(model, {"name": "adamw"})
    for step in range(12):
        set_gradients(model, step)
        optimizer.step()
    assert optimizer.state[model.all[0]]["step"] == 12
    assert len(optimizer._plans) <= 8
