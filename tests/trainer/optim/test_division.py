"""Groups with settings of their own, for every optimizer there is."""

from __future__ import annotations

import copy
import logging
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import nn

from rundir import UserError
from trainer import GPTConfig
from trainer.model import GPT
from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.division import group_record, group_table, with_our_options
from trainer.optim.params import REGISTRY, OptimizerParams
from trainer.optim.params.rules import WIDTH_POWERS

NAMES = sorted(REGISTRY)
JOINT = ("nonlmo", "momo")
"""Parts of the names whose step is of one size for all weights, summed group by group."""
BATCHED = ("muon", "scion", "dap", "soap")
"""Parts of the names that multiply matrices in batches, which groups cut otherwise."""


def params(name: str, *rules: dict[str, Any], **values: Any) -> OptimizerParams:
    given = {"name": name, "lr": 0.03, "lr_schedule": "constant", "groups": list(rules), **values}
    if "truncate_loss" in {field.name for field in fields(REGISTRY[name])}:
        given["truncate_loss"] = 0.0  # the losses here lie below its default
    return optimizer_params(given, "")


def trained(model: nn.Module, chosen: OptimizerParams, steps: int = 3) -> dict[str, torch.Tensor]:
    """Take steps with a fixed sequence of batches and return the weights."""
    optimizer = build_optimizer(model, chosen)
    for step in range(steps):
        take_step(model, optimizer, step)
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def has(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    tokens = torch.randint(0, 11, (4, 9), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step(lambda: loss)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("name", NAMES)
def test_a_group_at_learning_rate_0_stays_to_the_bit_and_the_others_move(
    net: Any, name: str
) -> None:
    before = {key: weight.detach().clone() for key, weight in net.named_parameters()}
    still = params(name, {"match": r"up|lm_head", "lr_scale": 0.0}, weight_decay=0.2)
    after = trained(net, still)
    for key, weight in after.items():
        stays = key.startswith(("up.", "lm_head.", "unused."))
        assert torch.equal(weight, before[key]) == stays, key


@pytest.mark.parametrize("group", ["down", "wte"])
@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_acts_on_its_group_alone(net: Any, name: str, group: str) -> None:
    twin = copy.deepcopy(net)
    steps = 2 if (name, group) == ("soap", "down") else 1  # its first finds the matrices' bases
    plain = trained(net, params(name), steps)
    decayed = trained(twin, params(name, {"match": group, "weight_decay": 0.4}), steps)
    for key, weight in decayed.items():
        if key.startswith(group):
            assert not torch.equal(weight, plain[key]), key
        elif not has(name, JOINT):
            assert torch.equal(weight, plain[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_dividing_into_equal_groups_changes_nothing(net: Any, name: str) -> None:
    twin = copy.deepcopy(net)
    whole = trained(net, params(name, weight_decay=0.2))
    rules: list[dict[str, Any]] = [{"match": "up|norm"}, {"match": "lm_head|down"}]
    parts = trained(twin, params(name, *rules, weight_decay=0.2))
    for key, weight in parts.items():
        if has(name, JOINT + BATCHED):
            torch.testing.assert_close(weight, whole[key], rtol=1e-6, atol=1e-9)
        else:
            assert torch.equal(weight, whole[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_a_state_with_groups_continues_to_the_bit(net: Any, name: str) -> None:
    net.float()
    chosen = params(name, {"match": "up", "lr_scale": 0.5, "weight_decay": 0.1})
    twin = copy.deepcopy(net)
    expected = trained(net, chosen, steps=4)
    first = build_optimizer(twin, chosen)
    for step in range(2):
        take_step(twin, first, step)
    second = build_optimizer(twin, chosen)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(2, 4):
        take_step(twin, second, step)
    for key, weight in twin.named_parameters():
        assert torch.equal(weight, expected[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_a_state_can_be_loaded_without_the_options_it_was_saved_with(net: Any, name: str) -> None:
    first = build_optimizer(net, params(name, {"match": "up", "lr_scale": 0.5}))
    take_step(net, first, 0)
    saved = first.state_dict()
    for group in saved["param_groups"]:
        group |= {key: "theirs" for key in group if key not in {"params", "fused", "capturable"}}
    second = build_optimizer(net, params(name, {"match": "up", "lr_scale": 0.5}))
    before = [dict(group) for group in second.param_groups]
    second.load_state_dict(with_our_options(second, saved))
    for ours, expected in zip(second.param_groups, before, strict=True):
        assert ours.keys() == expected.keys()
        assert all(ours[key] == expected[key] for key in expected if key != "params")
    assert second.state.keys() == first.state.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_other_groups_is_refused_in_one_line(net: Any, name: str) -> None:
    saved = build_optimizer(net, params(name)).state_dict()
    other = build_optimizer(net, params(name, {"match": "down"}))
    with pytest.raises(ValueError, match=r"parameter group") as caught:
        other.load_state_dict(saved)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_one_group_with_its_rate_and_decay(net: Any, name: str) -> None:
    rule = {"match": "down", "lr_scale": 0.5, "weight_decay": 0.1}
    optimizer = build_optimizer(net, params(name, rule, weight_decay=0.2))
    held = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(held) == sorted(map(id, net.parameters()))
    record = group_record(optimizer, net)
    plain = group_record(build_optimizer(net, params(name, weight_decay=0.2)), net)
    for key, (_, lr, decay) in record.items():
        scale, own = (0.5, 0.1) if key == "down.weight" else (1.0, 0.2)
        assert (lr, decay) == (pytest.approx(scale * plain[key][1]), own)


def options(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> dict[str, Any]:
    """Return what a weight's group has beside its members, learning rate and weight decay."""
    own = {"params", "lr", "initial_lr", "weight_decay"}
    for group in optimizer.param_groups:
        if any(each is weight for each in group["params"]):
            return {key: value for key, value in group.items() if key not in own}
    raise AssertionError("the weight is in no group")


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_makes_a_matrix_or_the_rest_of_a_weight(net: Any, name: str) -> None:
    plain = build_optimizer(net, params(name))
    matrix, rest = options(plain, net.up.weight), options(plain, net.wte.weight)
    rules = [{"match": "lm_head", "kind": "matrix"}, {"match": "down", "kind": "rest"}]
    ruled = build_optimizer(net, params(name, *rules))
    assert options(ruled, net.lm_head.weight) == matrix
    assert options(ruled, net.down.weight) == rest
    assert (matrix != rest) == has(name, BATCHED)


def test_options_of_the_parts_are_their_own(net: Any) -> None:
    first, second, *_ = build_optimizer(net, params("muon", {"match": "down"})).param_groups
    first["list"] = second["list"] = 1
    assert first["params"] is not second["params"]
    assert first["norm"] == second["norm"] == "spectral"


def test_without_rules_nothing_is_divided(net: Any) -> None:
    assert len(build_optimizer(net, params("adamw")).param_groups) == 1


def test_the_table_is_logged_with_repeated_layers_as_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.ModuleDict(
        {"h": nn.ModuleList([nn.Linear(3, 2) for _ in range(4)]), "lm_head": nn.Linear(2, 9)}
    )
    chosen = params("muon", {"match": "bias", "weight_decay": 0.0}, weight_decay=0.1)
    with caplog.at_level(logging.INFO, logger="trainer.optim.build"):
        build_optimizer(model, replace(chosen, muon_lr_ratio=2.0))
    table = """parameter groups
group  kind    name            shape  count  weights    lr  weight decay
0      matrix  h.*.weight      2x3        4       24  0.06           0.1
1      rest    h.*.bias        2          4        8  0.03             0
1      rest    lm_head.bias    9          1        9  0.03             0
2      rest    lm_head.weight  9x2        1       18  0.03           0.1"""
    assert caplog.messages == [table]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("muon", {}),
        ("muon-momo", {}),
        ("muon-momo", {"lmo": False}),
        ("muonmax-momo", {}),
        ("muonmax-momo", {"lmo": True}),
        ("muon-torch", {}),
    ],
)
def test_the_table_has_the_matrices_learning_rate_as_the_user_gave_it(
    net: Any, name: str, values: dict[str, Any]
) -> None:
    chosen = params(name, muon_lr=0.27, **values)
    lines = group_table(build_optimizer(net, chosen), net, chosen).splitlines()
    rates = {line.split()[2]: line.split()[-2] for line in lines[1:]}
    assert rates["square.weight"] == "0.27"
    assert rates["wte.weight"] == "0.03"


def widened(name: str, *, tied: bool = False, **values: Any) -> dict[str, tuple[float, float]]:
    """Return lr and weight decay by kind of parameter for a model 4 times as wide as the base."""
    config = GPTConfig(n_embd=64, n_layer=1, n_head=2, tie_embeddings=tied)
    model = GPT(config, context=8)
    chosen = params(name, lr=0.01, weight_decay=0.3, mup_base_n_embd=16, **values)
    record = group_record(build_optimizer(model, chosen), model)
    keys = {"hidden": "blocks.0.mlp.c_proj", "norm": "ln_f", "embedding": "embed_tokens"}
    keys |= {} if tied else {"output": "lm_head"}
    return {kind: record[f"{key}.weight"][1:] for kind, key in keys.items()}


@pytest.mark.parametrize("name", sorted(WIDTH_POWERS))
def test_learning_rates_follow_the_width_as_table_3_says(name: str) -> None:
    """Width 64 over base 16: Adam's hidden weights and all heads a quarter, SGD's rest 4 times."""
    found = widened(name)
    plain, less, more = (0.01, 0.3), (0.0025, 1.2), (0.04, 0.075)
    if name == "nadamw":
        assert widened(name, decoupled_weight_decay=False) == widened("nadam")
    if name in {"adam", "nadam"}:
        less = (0.0025, 0.3)
    if "adam" in name or name in {"ademamix", "lion", "mars", "sign-gd"}:
        assert found == {"hidden": less, "norm": plain, "embedding": plain, "output": less}
    elif name in {"muon", "scion", "muon-momo", "muon-torch"}:
        assert found == {"hidden": plain, "norm": plain, "embedding": plain, "output": less}
    else:
        assert found == {"hidden": plain, "norm": more, "embedding": more, "output": less}


def test_a_head_tied_to_the_embedding_follows_the_width_as_the_embedding() -> None:
    plain = (0.01, 0.3)
    assert widened("adamw", tied=True) == {
        "hidden": (0.0025, 1.2),
        "norm": plain,
        "embedding": plain,
    }


def test_a_step_of_adam_shrinks_weights_of_a_wider_model_by_a_smaller_share() -> None:
    """Without a gradient of the loss, decay alone fills the step, whose size is the rate's."""
    moved = []
    for base in (16, 64):
        torch.manual_seed(0)
        model = GPT(GPTConfig(n_embd=64, n_layer=1, n_head=2), context=8)
        chosen = params("adam", lr=0.01, weight_decay=0.3, mup_base_n_embd=base)
        optimizer = build_optimizer(model, chosen)
        weight = model.get_parameter("blocks.0.mlp.c_fc.weight")
        before = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        moved.append((weight.detach() - before).abs().mean())
    torch.testing.assert_close(moved[0], moved[1] / 4, rtol=1e-3, atol=0)


def test_a_rule_and_the_width_multiply() -> None:
    rule = {"match": "mlp", "lr_scale": 0.5, "weight_decay": 0.2}
    model = GPT(GPTConfig(n_embd=64, n_layer=1, n_head=2), context=8)
    chosen = params("adamw", rule, lr=0.01, weight_decay=0.3, mup_base_n_embd=16)
    record = group_record(build_optimizer(model, chosen), model)
    assert record["blocks.0.mlp.c_fc.weight"][1:] == pytest.approx((0.00125, 0.8))
    assert record["blocks.0.attn.c_proj.weight"][1:] == pytest.approx((0.0025, 1.2))


def test_at_the_base_width_nothing_changes() -> None:
    model = GPT(GPTConfig(n_embd=64, n_layer=1, n_head=2), context=8)
    assert len(build_optimizer(model, params("adamw", mup_base_n_embd=64)).param_groups) == 1


def test_widths_are_of_optimizers_that_exist() -> None:
    assert set(WIDTH_POWERS) <= set(REGISTRY)


@pytest.mark.parametrize("name", sorted(set(REGISTRY) - set(WIDTH_POWERS)))
def test_where_no_width_rule_is_known_it_is_refused(name: str) -> None:
    with pytest.raises(UserError) as caught:
        params(name, mup_base_n_embd=64)
    assert str(caught.value) == f"mup_base_n_embd = 64; must be null: for {name} no rule is known"


def test_a_models_own_width_rule_is_refused_where_the_optimizer_has_none() -> None:
    config = GPTConfig(n_embd=64, n_layer=1, n_head=2, enable_mup_with_base_n_embd=16)
    model = GPT(config, context=8)
    build_optimizer(model, params("muon-torch"))
    for name, values in (("soap", {}), ("muon-torch", {"adjust_lr_fn": "match_rms_adamw"})):
        with pytest.raises(UserError) as caught:
            build_optimizer(model, params(name, **values))
        assert str(caught.value) == (
            f"enable_mup_with_base_n_embd = 16; must be null: for {name} no rule is known"
        )


def test_a_model_that_does_not_say_its_width_is_refused(net: Any) -> None:
    with pytest.raises(UserError) as caught:
        build_optimizer(net, params("adamw", mup_base_n_embd=64))
    assert str(caught.value) == (
        "mup_base_n_embd = 64; must be null: the model has no config.n_embd"
    )
