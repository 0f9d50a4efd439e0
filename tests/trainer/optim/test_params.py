from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rundir import UserError
from trainer.optim.params import REGISTRY, AdamParams, GroupRule, optimizer_params

WHERE = "optimizer.optimizer_params"
CONFIGS = Path(__file__).parents[3] / "conf" / "optimizer"


def test_parameters_and_schedules_do_without_torch() -> None:
    code = (
        "import sys; import trainer.optim.params; from trainer.optim import lr_factor;"
        "lr_factor('constant', 0, 1, 0.0); sys.exit('torch' in sys.modules)"
    )
    root = str(CONFIGS.parents[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_every_optimizer_has_a_config_file_and_the_reverse() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(REGISTRY)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_config_file_builds_and_holds_every_key(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    values = yaml.safe_load(text)["optimizer_params"]
    params = optimizer_params(values, WHERE)
    assert params.name == name
    assert set(values) == {field.name for field in dataclasses.fields(params)}
    assert text.startswith("# ")


def test_lists_and_whole_numbers_are_taken_for_tuples_and_floats() -> None:
    params: Any = optimizer_params({"name": "adamw", "lr": 1, "betas": [0, 0.5]}, WHERE)
    assert params.lr == 1.0
    assert params.betas == (0.0, 0.5)


def test_the_two_daps_differ_in_their_inverse() -> None:
    plain: Any = optimizer_params({"name": "dap-ns-nadam"}, WHERE)
    accelerated: Any = optimizer_params({"name": "dap-ns-nadam-accel"}, WHERE)
    assert plain.accelerated == 1e-3
    assert accelerated.accelerated is True


def test_only_a_truncated_step_needs_one_decay_for_all_averages() -> None:
    values = {"name": "muonmax-momo", "betas": [0.9, 0.95]}
    optimizer_params({**values, "truncate_loss": None}, WHERE)
    optimizer_params({**values, "rest_norm": "linf"}, WHERE)


def test_a_ratio_of_learning_rates_enters_a_step_times_the_dual_norm_by_its_root() -> None:
    for name, scale in (("muon", 9.0), ("scion", 9.0), ("muon-momo", 9.0), ("muonmax-momo", 3.0)):
        params: Any = optimizer_params({"name": name, "muon_lr_ratio": 9.0}, WHERE)
        assert params.spectral_scale == scale


def test_an_unknown_optimizer_lists_those_that_exist() -> None:
    with pytest.raises(UserError) as caught:
        optimizer_params({"name": "adamx"}, WHERE)
    assert str(caught.value) == (
        "unknown optimizer adamx in optimizer.optimizer_params.name; must be one of: "
        f"{', '.join(sorted(REGISTRY))}; did you mean adam?"
    )


def test_an_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        optimizer_params({"name": "sgd", "lrr": 1}, WHERE)
    assert str(caught.value) == (
        "unknown key lrr in optimizer.optimizer_params; must be one of: backend, groups, lr, "
        "lr_schedule, mup_base_n_embd, name, warm_up_fraction, weight_decay; did you mean lr?"
    )


def test_a_missing_name_is_said() -> None:
    with pytest.raises(UserError, match=r"optimizer_params\.name is missing; must be one of: adam"):
        optimizer_params({"lr": 1.0}, WHERE)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "adamw", "lr": -1e-3}, "lr = -0.001; must be a finite number, at least 0"),
        ({"name": "adamw", "lr": float("nan")}, "lr = nan; must be a finite number, at least 0"),
        ({"name": "adamw", "betas": [0.9, 1.0]}, "betas = [0.9, 1.0]; must be in [0, 1)"),
        ({"name": "adamw", "betas": 0.9}, "betas = 0.9; must be a list of 2 values"),
        ({"name": "muon", "lr": "fast"}, "lr = 'fast'; must be a number"),
        ({"name": "muon", "ns_steps": 0}, "ns_steps = 0; must be at least 1"),
        (
            {"name": "muon", "muon_lr": 0.1, "muon_lr_ratio": 2.0},
            "muon_lr = 0.1; must be null where muon_lr_ratio is given",
        ),
        (
            {"name": "muon-torch", "adjust_lr_fn": "match_rms_adamw", "mup_base_n_embd": 64},
            "mup_base_n_embd = 64; must be null: no rule is known for match_rms_adamw",
        ),
        (
            {"name": "scion", "polar_method": "newton"},
            "polar_method = 'newton'; must be one of polar_express, jordan, svd",
        ),
        (
            {"name": "sgd", "backend": "triton"},
            "backend = 'triton'; must be auto or torch: sgd has no Triton kernel",
        ),
        (
            {"name": "soap", "backend": "cuda"},
            "backend = 'cuda'; must be one of auto, torch, triton",
        ),
        (
            {"name": "sgd-m", "dampening": 2.0},
            "dampening = 2.0; must be in [0, 1] or momentum",
        ),
        (
            {"name": "sgd-nesterov", "momentum": 0.0},
            "momentum = 0.0; must be in (0, 1) for sgd-nesterov",
        ),
        (
            {"name": "muon-momo", "truncate_loss": float("nan")},
            "truncate_loss = nan; must be a finite number or null",
        ),
        (
            {"name": "muonmax-momo", "betas": [0.9, 0.95]},
            "betas = [0.9, 0.95]; must be [0.95, ...] as momentum: the step is truncated",
        ),
        (
            {"name": "muon-momo", "prod_norm": "l1"},
            "prod_norm = 'l1'; must be one of linf, l2, hybrid",
        ),
        ({"name": "normuon", "beta2": 1.0}, "beta2 = 1.0; must be in [0, 1)"),
        (
            {"name": "muon-torch", "adjust_lr_fn": "rms"},
            "adjust_lr_fn = 'rms'; must be one of original, match_rms_adamw",
        ),
        ({"name": "dap-ns-nadam", "rcond": 0.0}, "rcond = 0.0; must be in (0, 1)"),
        (
            {"name": "dap-ns-nadam", "xtx_subsample": 1.5},
            "xtx_subsample = 1.5; must be in (0, 1] or null",
        ),
        (
            {"name": "dap-ns-nadam", "accelerated": -1.0},
            "accelerated = -1.0; must be a finite number, at least 0",
        ),
        ({"name": "adam", "warm_up_fraction": 2}, "warm_up_fraction = 2.0; must be in [0, 1]"),
        (
            {"name": "adam", "mup_base_n_embd": 0},
            "mup_base_n_embd = 0; must be at least 1, or null",
        ),
        (
            {"name": "dap-ns-nadam", "mup_base_n_embd": 64},
            "mup_base_n_embd = 64; must be null: for dap-ns-nadam no rule is known",
        ),
        ({"name": "adam", "groups": "wte"}, "groups = 'wte'; must be a list"),
        (
            {"name": "adam", "groups": ["wte"]},
            "groups[0] = 'wte'; must be a mapping with keys match, lr_scale, weight_decay, kind",
        ),
        (
            {"name": "adam", "groups": [{"match": "wte"}, {"match": "w(te"}]},
            (
                "groups[1].match = 'w(te'; must be a regular expression: missing ), unterminated "
                "subpattern at position 1"
            ),
        ),
        (
            {"name": "adam", "groups": [{"match": ""}]},
            "groups[0].match = ''; must be a part of a parameter's name",
        ),
        (
            {"name": "adam", "groups": [{"match": "wte", "lr_scale": -1}]},
            "groups[0].lr_scale = -1.0; must be a finite number, at least 0",
        ),
        (
            {"name": "adam", "groups": [{"match": "wte", "weight_decay": float("inf")}]},
            "groups[0].weight_decay = inf; must be a finite number, at least 0, or null",
        ),
        (
            {"name": "muon", "groups": [{"match": "wte", "kind": "matrices"}]},
            "groups[0].kind = 'matrices'; must be one of matrix, rest or null",
        ),
    ],
)
def test_an_illegal_value_is_named_with_what_is_legal(values: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        optimizer_params(values, WHERE)
    assert str(caught.value) == f"{WHERE}.{message}"


ROOTED = [
    (name, key)
    for name, cls in sorted(REGISTRY.items())
    for key in ("eps", "dap_eps")
    if key in {field.name for field in dataclasses.fields(cls)}
]


@pytest.mark.parametrize(("name", "key"), ROOTED)
@pytest.mark.parametrize("value", [0.0, -1e-8, float("inf"), float("nan")])
def test_what_is_added_to_a_root_keeps_it_above_0(name: str, key: str, value: float) -> None:
    with pytest.raises(UserError) as caught:
        optimizer_params({"name": name, key: value}, WHERE)
    assert str(caught.value) == f"{WHERE}.{key} = {value!r}; must be a finite number above 0"


def test_an_unknown_key_of_a_group_suggests_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        optimizer_params({"name": "adam", "groups": [{"match": "wte", "lr_scal": 2}]}, WHERE)
    assert str(caught.value) == (
        f"unknown key lr_scal in {WHERE}.groups[0]; must be one of: kind, lr_scale, match, "
        "weight_decay; did you mean lr_scale?"
    )


def test_a_group_must_say_what_it_matches() -> None:
    with pytest.raises(UserError) as caught:
        optimizer_params({"name": "adam", "groups": [{"lr_scale": 2}]}, WHERE)
    assert str(caught.value) == f"{WHERE}.groups[0].match is missing; it has no default"


def test_groups_are_the_same_from_python() -> None:
    rules = (GroupRule("wte|lm_head", lr_scale=0.3, weight_decay=0.0), GroupRule("norm"))
    written = [{"match": "wte|lm_head", "lr_scale": 0.3, "weight_decay": 0}, {"match": "norm"}]
    assert AdamParams("adamw", groups=rules) == optimizer_params(
        {"name": "adamw", "groups": written}, WHERE
    )


def test_an_unknown_schedule_suggests_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        optimizer_params({"name": "adamw", "lr_schedule": "constant_linear"}, WHERE)
    assert str(caught.value) == (
        "unknown lr_schedule constant_linear; must be one of: constant, constant-linear, "
        "exponential_K_G, linear, sqrt, warm-up-cosine, wsd, wsd_D; did you mean constant-linear?"
    )


ADAM: dict[str, Any] = {"betas": [0.9, 0.999], "eps": 1e-8}
MOMO: dict[str, Any] = {"lb": 0.0}
SPECTRAL: dict[str, Any] = {
    "momentum": 0.95,
    "ns_steps": 5,
    "polar_method": "polar_express",
    "muon_lr_ratio": 1.0,
}
DAP: dict[str, Any] = {
    "dap_beta1": 0.95,
    "dap_beta2": 0.999,
    "momentum": 0,
    "disable_preconditioning": False,
    "scalar": False,
    "ns_pinv_steps": 50,
    "damping": 0,
    "nesterov": True,
    "accelerated": 1e-3,
    "rcond": 1e-3,
    "xtx_subsample": None,
    "mb_subsampling": True,
    "debug_timing": False,
    "update_norm": False,
    "update_opnorm": False,
}
GPT_OPT: dict[str, dict[str, Any]] = {
    "sgd": {},
    "sgd-m": {"momentum": 0.9, "dampening": "momentum"},
    "sgd-nesterov": {"momentum": 0.9, "dampening": 0},
    "adam": ADAM,
    "adamw": ADAM,
    "nadam": {**ADAM, "momentum_decay": 0},
    "nadamw": {**ADAM, "momentum_decay": 0, "decoupled_weight_decay": True},
    "momo": {**MOMO, "beta": 0.9, "bias_correction": False},
    "momo-star": {**MOMO, "beta": 0.9, "bias_correction": False},
    "momo-adam": {**MOMO, **ADAM, "divide": True},
    "momo-adam-star": {**MOMO, **ADAM, "divide": True},
    "muon": {**SPECTRAL, "betas": [0.95, 0.95]},
    "scion": SPECTRAL,
    "muon-momo": {**SPECTRAL, "betas": [0.95, 0.95], "truncate_loss": 3.2},
    "muonmax-momo": {**SPECTRAL, "betas": [0.95, 0.95], "truncate_loss": 3.2},
    "sign-gd": {"momentum": 0.95, "nesterov": False},
    "sign-gd-nonlmo": {"momentum": 0.95, "nesterov": False},
    "dap-ns-nadam": DAP,
    "dap-ns-nadam-accel": {**DAP, "accelerated": True},
}
"""The keys that its optimizers go by."""
SCHEDULES = (
    "constant",
    "linear",
    "sqrt",
    "exponential_60_0.5",
    "warm-up-cosine",
    "constant-linear",
)


@pytest.mark.parametrize("name", sorted(GPT_OPT))
def test_whatever_gpt_opt_can_be_told_can_be_told_here(name: str) -> None:
    shipped = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["optimizer_params"]
    own = GPT_OPT[name]
    assert set(own) <= set(shipped), "an override on the command line must find its key"
    for schedule in SCHEDULES:
        common = {"lr": 0.01, "weight_decay": 0, "lr_schedule": schedule, "warm_up_fraction": 0.4}
        params = optimizer_params({**shipped, **common, **own}, "")
        assert params.lr_schedule == schedule
    if "muon_lr_ratio" in own:
        instead = {"muon_lr_ratio": None, "muon_lr": 0.02}
        assert optimizer_params({**shipped, **own, **instead}, "").name == name
    for method in ("jordan", "svd") if "polar_method" in own else ():
        optimizer_params({**shipped, **own, "polar_method": method}, "")
