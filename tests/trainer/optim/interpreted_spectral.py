"""Run by test_noneuclidean.py in a process where Triton's interpreter takes CPU tensors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from trainer.optim import build_optimizer, optimizer_params

torch.set_num_threads(1)

CASES: list[dict[str, Any]] = [
    {"name": "muon", "betas": [0.7, 0.9]},
    {"name": "muon", "eps": 1e-3, "groups": [{"match": "norm", "lr_scale": 3.0}]},
    {"name": "scion", "muon_lr_ratio": 3.0},
    {"name": "muon-momo", "truncate_loss": 3.0},
    {"name": "muon-momo", "truncate_loss": None, "rest_norm": "adam_inf"},
    {"name": "muonmax-momo", "truncate_loss": 3.0},
    {"name": "muonmax-momo", "truncate_loss": 3.0, "prod_norm": "l2", "rest_norm": "adam_inf"},
    {"name": "muonmax-momo", "truncate_loss": 3.95, "prod_norm": "l2", "lmo": True},
    {"name": "muonmax-momo", "truncate_loss": None},
    {"name": "muon-momo", "truncate_loss": 3.0, "rest_norm": "adam_inf", "nuc_approx": "frobenius"},
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wte = nn.Embedding(11, 6)
        self.up = nn.Linear(6, 9)
        self.norm = nn.LayerNorm(9)
        self.down = nn.Linear(9, 6, bias=False)


def built(net: nn.Module, values: dict[str, Any], backend: str) -> Any:
    keys = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.7, "backend": backend, **values}
    return build_optimizer(net, optimizer_params(keys, ""))


def step(net: Any, optimizer: Any, number: int, clip: float | None) -> None:
    generator = torch.Generator().manual_seed(number)
    for weight in net.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)
    net.wte.weight.grad = net.wte.weight.grad.T.contiguous().T
    if number == 0:
        net.norm.weight.grad = None
    if number == 2:
        net.down.weight.grad = None
    if clip is not None:
        optimizer.clip_grad_norm(clip)
    optimizer.step(lambda: torch.tensor(4.0 - 0.1 * number))


@pytest.mark.parametrize("values", CASES, ids=str)
def test_the_kernels_steps_agree_with_torchs_and_either_goes_on_from_the_others_state(
    values: dict[str, Any],
) -> None:
    values = {"betas": [0.7, 0.9], **values} if values["name"] != "scion" else values
    net = Net()
    twin = copy.deepcopy(net)
    ours, theirs = built(net, values, "triton"), built(twin, values, "torch")
    assert (ours._backend, theirs._backend) == ("triton", "torch")
    for number in range(3):
        clip = (0.5, None, 2.0)[number]
        step(net, ours, number, clip)
        step(twin, theirs, number, clip)
    saved = copy.deepcopy(ours.state_dict()), copy.deepcopy(theirs.state_dict())
    theirs.load_state_dict(saved[0])
    ours.load_state_dict(saved[1])
    for number in range(3, 6):
        step(net, ours, number, 1.0)
        step(twin, theirs, number, 1.0)
    same = zip(
        *(optimizer.state_dict()["state"].items() for optimizer in (ours, theirs)), strict=True
    )
    for (_, one), (_, other) in same:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_step_whose_gradients_lie_where_they_lay_makes_no_new_plan() -> None:
    net = Net()
    optimizer = built(net, {"name": "muon"}, "triton")
    step(net, optimizer, 1, None)
    for _ in range(3):
        optimizer.step()
    assert len(optimizer._plans) == 1
