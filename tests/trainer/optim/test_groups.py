from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rundir import UserError
from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.groups import ruled_parameters, split_parameters
from trainer.optim.params import OptimizerParams


def params(*rules: dict[str, Any], name: str = "muon") -> OptimizerParams:
    return optimizer_params({"name": name, "groups": list(rules)}, "")


def layers(**modules: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(modules)


MATRIX = ("muon", "muonmax-momo", "muon-torch", "normuon", "soap", "dap-ns-nadam")


@pytest.mark.parametrize("name", MATRIX)
def test_weights_of_three_dimensions_are_refused_in_a_group_of_matrices(
    net: Any, name: str
) -> None:
    optimizer = build_optimizer(net, optimizer_params({"name": name}, ""))
    matrices = optimizer.param_groups[0]
    convolution = nn.Parameter(torch.zeros(4, 3, 2))
    with pytest.raises(UserError) as caught:
        optimizer.add_param_group({**matrices, "params": [convolution]})
    assert str(caught.value) == (
        "a weight's shape = [4, 3, 2]; must be of 2 dimensions: its group moves as matrices do"
    )
    held = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert all(weight is not convolution for weight in held)


def test_matrices_are_two_dimensional_and_no_embeddings(net: Any) -> None:
    split = split_parameters(net, params())
    assert list(split.matrices) == [
        "up.weight",
        "down.weight",
        "square.weight",
        "again.weight",
        "unused.weight",
    ]
    assert set(split.rest) == {
        "wte.weight",
        "up.bias",
        "norm.weight",
        "norm.bias",
        "lm_head.weight",
    }


def test_a_weight_tied_to_the_head_is_no_matrix() -> None:
    model = layers(tokens=nn.Linear(4, 4, bias=False), lm_head=nn.Linear(4, 4))
    model["tokens"].weight = model["lm_head"].weight
    split = split_parameters(model, params())
    assert not split.matrices
    assert "tokens.weight" in split.rest


def test_frozen_weights_are_left_out(net: Any) -> None:
    net.down.weight.requires_grad_(False)
    split = split_parameters(net, params())
    assert "down.weight" not in split.matrices | split.rest


def test_only_linear_layers_have_inputs_to_look_at() -> None:
    model = layers(conv=nn.Conv1d(2, 3, 1), linear=nn.Linear(2, 3))
    model.register_parameter("free", nn.Parameter(torch.ones(2, 3)))
    assert set(split_parameters(model, params()).matrices) == {"free", "linear.weight"}
    dap = params(name="dap-ns-nadam")
    assert set(split_parameters(model, dap).matrices) == {"linear.weight"}


def test_a_rule_says_what_is_a_matrix(net: Any) -> None:
    rules = params({"match": "lm_head", "kind": "matrix"}, {"match": "^up", "kind": "rest"})
    split = split_parameters(net, rules)
    assert "lm_head.weight" in split.matrices
    assert "up.weight" in split.rest


def test_the_first_rule_that_matches_counts_and_any_name_of_a_tied_weight_does() -> None:
    model = layers(tokens=nn.Linear(4, 4, bias=False), lm_head=nn.Linear(4, 4), up=nn.Linear(4, 4))
    model["tokens"].weight = model["lm_head"].weight
    rules = params({"match": r"lm_head\.weight"}, {"match": "weight$"}, {"match": "lm_head"})
    ruled = ruled_parameters(model, rules)
    numbers = {name: ruled.get(weight) for name, weight in model.named_parameters()}
    assert numbers == {"tokens.weight": 0, "lm_head.bias": 2, "up.weight": 1, "up.bias": None}


def test_a_third_dimension_is_refused_where_a_matrix_is_asked_for() -> None:
    model = layers(conv=nn.Conv1d(2, 3, 1))
    with pytest.raises(UserError) as caught:
        split_parameters(model, params({"match": "conv.weight", "kind": "matrix"}))
    assert str(caught.value) == (
        "groups[0].kind = 'matrix'; must be rest or null: conv.weight has 3 dimensions, a matrix 2"
    )


def test_a_matrix_without_inputs_is_refused_where_they_are_looked_at(net: Any) -> None:
    rules = params({"match": "wte", "kind": "matrix"}, name="dap-ns-nadam")
    with pytest.raises(UserError) as caught:
        split_parameters(net, rules)
    assert str(caught.value) == (
        "groups[0].kind = 'matrix'; must be rest or null: wte.weight is of no linear layer, whose "
        "inputs are looked at"
    )


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [{"match": "lm_haed"}],
            (
                "groups[0].match = 'lm_haed'; must be part of the name of a trainable parameter "
                "that no earlier group has; did you mean lm_head?"
            ),
        ),
        (
            [{"match": "norm"}, {"match": r"norm\.bias"}],
            (
                r"groups[1].match = 'norm\\.bias'; must be part of the name of a trainable "
                "parameter that no earlier group has"
            ),
        ),
    ],
)
def test_a_rule_that_matches_nothing_is_refused(net: Any, rules: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        ruled_parameters(net, params(*rules))
    assert str(caught.value) == message


def test_a_rule_for_frozen_weights_alone_matches_nothing(net: Any) -> None:
    net.down.weight.requires_grad_(False)
    with pytest.raises(UserError, match="name of a trainable parameter"):
        ruled_parameters(net, params({"match": "down"}))
