"""ademamix, mars and schedule-free-adamw against the formulas: what the three have in common."""

from __future__ import annotations

import copy
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from rundir import UserError
from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.ademamix import AdEMAMix, slow_decay, slow_share
from trainer.optim.mars import Mars
from trainer.optim.schedule_free import ScheduleFreeAdamW

ORACLES = {"ademamix": "AdEMAMix", "mars": "Mars", "schedule-free-adamw": "ScheduleFree"}
CLASSES: dict[str, Any] = {
    "ademamix": AdEMAMix,
    "mars": Mars,
    "schedule-free-adamw": ScheduleFreeAdamW,
}
CASES: list[dict[str, Any]] = [
    {"name": "ademamix", "weight_decay": 0.3},
    {"name": "ademamix", "alpha_warmup": 5, "beta3_warmup": 4, "beta3": 0.99},
    {"name": "ademamix", "betas": [0.5, 0.6], "beta3": 0.4, "beta3_warmup": 3, "alpha": 2},
    {"name": "mars", "weight_decay": 0.3},
    {"name": "mars", "optimize_1d": True, "gamma": 0.5},
    {"name": "mars", "betas": [0.0, 0.5], "betas_1d": [0.3, 0.7], "eps": 1e-3},
    {"name": "schedule-free-adamw"},
    {"name": "schedule-free-adamw", "warmup_steps": 4, "weight_decay": 0.3},
    {"name": "schedule-free-adamw", "betas": [0.3, 0.0], "eps": 1e-3, "warmup_steps": 1},
]
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 0.05}
STEPS = 7


def shapes(seed: int) -> list[tuple[int, ...]]:
    """A scalar, a weight of one element, and some of one to four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    some = [
        tuple(torch.randint(1, 9, (dimensions,), generator=generator).tolist())
        for dimensions in (1, 1, 2, 2, 2, 3, 4)
    ]
    return [(), (1,), (1, 1), *some]


def random_weights(seed: int, dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in shapes(seed)
    ]


def random_gradients(weights: list[nn.Parameter], seed: int) -> None:
    """One weight in four has none, and sizes differ; the first weight always has one."""
    generator = torch.Generator().manual_seed(seed)
    for i, weight in enumerate(weights):
        scale = 10 ** (2 * torch.rand((), generator=generator).item() - 1.5)
        g = scale * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        absent = i > 0 and torch.rand((), generator=generator).item() < 0.25
        weight.grad = None if absent else g.to(weight.dtype)


def built(weights: list[nn.Parameter], params: Any) -> Any:
    """Two groups, of which the second has a rate and a decay of its own."""
    extra = {"corrected": True} if params.name == "mars" else {}
    if extra and not params.optimize_1d:
        matrices = [weight for weight in weights if weight.ndim >= 2]
        vectors = [weight for weight in weights if weight.ndim < 2]
        groups = [{"params": matrices, **extra}, {"params": vectors, "corrected": False}]
    else:
        groups = [{"params": weights[::2], **extra}, {"params": weights[1::2], **extra}]
    groups[1] |= {"lr": params.lr / 3, "weight_decay": 0.1}
    return CLASSES[params.name](groups, params)


@pytest.mark.parametrize("values", CASES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("rate_in_tensor", [False, True])
def test_steps_follow_the_formulas_whatever_the_shapes_groups_and_absent_gradients(
    modern_oracle: ModuleType,
    values: dict[str, Any],
    dtype: torch.dtype,
    seed: int,
    rate_in_tensor: bool,
) -> None:
    params: Any = optimizer_params({"lr": 0.03, **values}, "")
    weights = random_weights(seed, dtype)
    optimizer = built(weights, params)
    expected = [weight.detach().double().numpy().copy() for weight in weights]
    kind = getattr(modern_oracle, ORACLES[params.name])
    references = [kind(params, x) for x in expected]
    rates = {
        weight: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    for step in range(STEPS):
        factor = 1.0 if step < 4 else 0.4
        for group in optimizer.param_groups:
            lr = rates[group["params"][0]][0] * factor
            group["lr"] = torch.tensor(lr, dtype=torch.float64) if rate_in_tensor else lr
        random_gradients(weights, 10 * seed + step)
        optimizer.step()
        if step == 3:  # a checkpoint in the middle
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = built(weights, params)
            optimizer.load_state_dict(saved)
        for i, weight in enumerate(weights):
            if weight.grad is not None:
                lr, decay = rates[weight]
                g = weight.grad.double().numpy()
                expected[i] = references[i].step(expected[i], g, lr * factor, decay)
    tolerance = TOLERANCES[dtype]
    for weight, x in zip(weights, expected, strict=True):
        torch.testing.assert_close(
            weight.detach().double(), torch.from_numpy(x), rtol=tolerance, atol=tolerance
        )
    if params.name == "mars":
        counts = [reference.clipped for reference in references if not reference.plain]
        assert 0 < sum(counts) < STEPS * len(counts)


@pytest.mark.parametrize("name", CLASSES)
def test_gradients_laid_out_otherwise_give_the_same_step(name: str) -> None:
    params: Any = optimizer_params({"name": name, "lr": 0.03}, "")
    weights, twins = ([nn.Parameter(torch.ones(5, 7))] for _ in range(2))
    for step in range(3):
        g = torch.randn(7, 5, generator=torch.Generator().manual_seed(step)).T
        weights[0].grad, twins[0].grad = g, g.contiguous()
        if step == 0:
            groups = ([{"params": each, "corrected": True}] for each in (weights, twins))
            first, second = (CLASSES[name](group, params) for group in groups)
        first.step()
        second.step()
    torch.testing.assert_close(weights[0], twins[0])


@pytest.mark.parametrize("values", CASES, ids=str)
def test_counting_on_the_device_goes_on_where_the_host_counted(values: dict[str, Any]) -> None:
    params: Any = optimizer_params({"lr": 0.03, **values}, "")
    weights, twins = random_weights(2, torch.float64), random_weights(2, torch.float64)
    ours, other = built(weights, params), built(twins, params)
    for step in range(6):
        for each, optimizer in ((weights, ours), (twins, other)):
            random_gradients(each, step)
            if step == 3 and optimizer is other:
                for group in optimizer.param_groups:
                    group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
            if step == 5:  # a state says the same, wherever it was counted
                saved = optimizer.state_dict()
                for group in saved["param_groups"]:
                    group["lr"] = float(group["lr"])
                optimizer.load_state_dict(copy.deepcopy(saved))
            optimizer.step()
    torch.testing.assert_close(weights, twins, rtol=1e-12, atol=1e-12)
    for weight, twin in zip(weights, twins, strict=True):
        assert torch.equal(ours.state[weight]["step"], other.state[twin]["step"])


@pytest.mark.parametrize("name", CLASSES)
def test_counters_of_weights_in_half_precision_are_loaded_to_the_bit(name: str) -> None:
    weights = random_weights(5, torch.bfloat16)
    params: Any = optimizer_params({"name": name, "lr": 0.03}, "")
    optimizer, resumed = built(weights, params), built(weights, params)
    for step in range(3):
        random_gradients(weights, step)
        optimizer.step()
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for weight in weights:
        for key in optimizer.COUNTERS:
            saved, loaded = (each.state[weight][key] for each in (optimizer, resumed))
            assert loaded.dtype == torch.float64
            assert torch.equal(loaded, saved)


@pytest.mark.parametrize("name", CLASSES)
def test_weights_of_several_dtypes_move_as_they_would_alone(name: str) -> None:
    dtypes = (torch.float32, torch.float64)
    weights, twins = ([nn.Parameter(torch.ones(3, 4, dtype=d)) for d in dtypes] for _ in range(2))
    params: Any = optimizer_params({"name": name, "lr": 0.03, "weight_decay": 0.1}, "")
    groups = ([{"params": each, "corrected": True}] for each in (weights, twins[:1], twins[1:]))
    together, *alone = (CLASSES[name](group, params) for group in groups)
    for step in range(4):
        random_gradients(weights, step)
        for weight, twin in zip(weights, twins, strict=True):
            twin.grad = weight.grad
        for optimizer in (together, *alone):
            optimizer.step()
    torch.testing.assert_close(weights, twins)


def test_ademamix_without_its_slow_average_is_adamw() -> None:
    weights, twins = random_weights(3, torch.float64), random_weights(3, torch.float64)
    values = {"name": "ademamix", "alpha": 0, "betas": [0.9, 0.95], "weight_decay": 0.2, "lr": 0.03}
    ours = AdEMAMix(weights, optimizer_params(values, ""))  # type: ignore[arg-type]
    theirs = torch.optim.AdamW(twins, lr=0.03, betas=(0.9, 0.95), weight_decay=0.2)
    for step in range(5):
        random_gradients(weights, step)
        for weight, twin in zip(weights, twins, strict=True):
            twin.grad = weight.grad
        ours.step()
        theirs.step()
    torch.testing.assert_close(weights, twins, rtol=1e-12, atol=1e-12)


def test_ademamix_looks_back_as_far_as_its_warm_up_has_got() -> None:
    params: Any = optimizer_params(
        {"name": "ademamix", "beta3": 0.9999, "beta3_warmup": 100, "alpha": 8, "alpha_warmup": 10},
        "",
    )
    assert [slow_share(params, step) for step in (1, 5, 10, 11)] == pytest.approx([0.8, 4, 8, 8])
    lives = [math.log(2) / -math.log(slow_decay(params, step)) for step in (1, 50, 100, 1000)]
    first, last = math.log(2) / -math.log(0.9), math.log(2) / -math.log(0.9999)
    middle = (first + last) / 2
    assert lives == pytest.approx([0.99 * first + 0.01 * last, middle, last, last])


def test_ademamix_warms_up_from_no_fast_average_too() -> None:
    values = {"name": "ademamix", "betas": [0.0, 0.9], "beta3": 0.9, "beta3_warmup": 4}
    params: Any = optimizer_params(values, "")
    decays = [slow_decay(params, step) for step in range(6)]
    assert decays == pytest.approx([0.0, 0.9**4, 0.9**2, 0.9 ** (4 / 3), 0.9, 0.9])
    params = optimizer_params({**values, "beta3": 0.0}, "")
    assert [slow_decay(params, step) for step in (1, 9)] == [0.0, 0.0]


def test_mars_without_correction_is_adamw_on_clipped_gradients() -> None:
    weights, twins = random_weights(4, torch.float64), random_weights(4, torch.float64)
    params: Any = optimizer_params({"name": "mars", "gamma": 0, "lr": 0.03}, "")
    ours = Mars([{"params": weights, "corrected": True}], params)
    theirs = torch.optim.AdamW(twins, lr=0.03, betas=(0.95, 0.99), weight_decay=0.0)
    for step in range(5):
        random_gradients(weights, step)
        for weight, twin in zip(weights, twins, strict=True):
            twin.grad = None
            if weight.grad is not None:
                twin.grad = weight.grad / max(1.0, weight.grad.norm().item())
        ours.step()
        theirs.step()
    torch.testing.assert_close(weights, twins, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("everything", [False, True])
def test_mars_leaves_vectors_to_adamw_unless_told_otherwise(net: Any, everything: bool) -> None:
    params = optimizer_params({"name": "mars", "optimize_1d": everything}, "")
    optimizer = build_optimizer(net, params)
    [corrected] = [group["params"] for group in optimizer.param_groups if group["corrected"]]
    vectors = {id(net.up.bias), id(net.norm.weight), id(net.norm.bias)}
    held = {id(weight) for weight in corrected}
    assert held == {id(w) for w in net.parameters()} - (set() if everything else vectors)
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert ("previous_grad" in optimizer.state[net.up.bias]) is everything
    assert "previous_grad" in optimizer.state[net.wte.weight]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "ademamix", "beta3": 1.0}, "beta3 = 1.0; must be in [0, 1)"),
        ({"name": "ademamix", "alpha": -1}, "alpha = -1.0; must be a finite number, at least 0"),
        ({"name": "ademamix", "alpha_warmup": 0}, "alpha_warmup = 0; must be at least 1, or null"),
        ({"name": "ademamix", "beta3_warmup": 0}, "beta3_warmup = 0; must be at least 1, or null"),
        ({"name": "mars", "gamma": -0.1}, "gamma = -0.1; must be a finite number, at least 0"),
        ({"name": "mars", "betas_1d": [1, 0]}, "betas_1d = [1.0, 0.0]; must be in [0, 1)"),
        (
            {"name": "schedule-free-adamw", "betas": [0.0, 0.9]},
            "betas[0] = 0.0; must be in (0, 1)",
        ),
        (
            {"name": "schedule-free-adamw", "warmup_steps": -1},
            "warmup_steps = -1; must be at least 0",
        ),
        ({"name": "soap", "shampoo_beta": 1.0}, "shampoo_beta = 1.0; must be in [0, 1)"),
        (
            {"name": "soap", "precondition_frequency": 0},
            "precondition_frequency = 0; must be at least 1",
        ),
        ({"name": "soap", "max_precond_dim": -1}, "max_precond_dim = -1; must be at least 0"),
    ],
)
def test_an_illegal_value_is_named_with_what_is_legal(values: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        optimizer_params(values, "o")
    assert str(caught.value) == f"o.{message}"


@pytest.mark.parametrize("typed", ["schedulefree-adamw", "schedule_free_adamw", "schedule-free"])
def test_other_spellings_lead_to_schedule_free_adamw(typed: str) -> None:
    with pytest.raises(UserError, match="did you mean schedule-free-adamw"):
        optimizer_params({"name": typed}, "o")
