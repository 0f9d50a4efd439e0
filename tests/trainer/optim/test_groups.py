from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from trainer.optim.groups import split_parameters


def test_matrices_are_two_dimensional_and_no_embeddings(net: Any) -> None:
    split = split_parameters(net)
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
    model = nn.ModuleDict({"tokens": nn.Linear(4, 4, bias=False), "lm_head": nn.Linear(4, 4)})
    model["tokens"].weight = model["lm_head"].weight
    split = split_parameters(model)
    assert not split.matrices
    assert "tokens.weight" in split.rest


def test_frozen_weights_are_left_out(net: Any) -> None:
    net.down.weight.requires_grad_(False)
    split = split_parameters(net)
    assert "down.weight" not in split.matrices | split.rest


def test_only_linear_layers_have_inputs_to_look_at() -> None:
    model = nn.ModuleDict({"conv": nn.Conv1d(2, 3, 1), "linear": nn.Linear(2, 3)})
    model.register_parameter("free", nn.Parameter(torch.ones(2, 3)))
    assert set(split_parameters(model).matrices) == {"free", "linear.weight"}
    assert set(split_parameters(model, of_linear_layers=True).matrices) == {"linear.weight"}


def test_the_table_is_logged_with_repeated_layers_as_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.ModuleDict({"h": nn.ModuleList([nn.Linear(3, 2) for _ in range(4)])})
    with caplog.at_level(logging.INFO, logger="trainer.optim.groups"):
        split_parameters(model)
    table = """parameter groups
group   name        shape  count  weights
matrix  h.*.weight  2x3        4       24
rest    h.*.bias    2          4        8"""
    assert caplog.messages == [table]
