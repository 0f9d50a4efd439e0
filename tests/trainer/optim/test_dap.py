from __future__ import annotations

import logging
import re
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainer.optim import build_optimizer, curvature, optimizer_params
from trainer.optim.cholesky import DampedInverse

BASE: dict[str, Any] = {"name": "dap-ns-nadam", "lr": 0.03, "weight_decay": 0.1}
ITERATED = {"rcond": 0.2, "ns_pinv_steps": 400, "damping": 0.3}
CASES: list[dict[str, Any]] = [
    {},
    {"nesterov": False, "dap_beta2": 0.0},
    {"dap_beta1": 0.0, "momentum": 0.8, "dap_beta2": 0.9},
    {"dap_beta1": 0.0, "momentum": 0.8, "nesterov": False, "dap_beta2": 0.0},
    {"dap_beta1": 0.0, "dap_beta2": 0.0, "damping": 0.1},
    {"ema_beta": 0.7, "accelerated": 0.1, "betas": [0.8, 0.9]},
    {"disable_preconditioning": True},
    {"scalar": True, "dap_beta2": 0.0, "ns_pinv_steps": 2000},
    {"update_norm": True},
    {"update_opnorm": True, "ns_pinv_steps": 4000},
    {"accelerated": False, **ITERATED},
    {"accelerated": True, **ITERATED},
    {"accelerated": 0.05, "gptopt_compat": True, **ITERATED},
    {"name": "dap-ns-nadam-accel", **ITERATED},
]


def train_beside_the_oracle(
    net: Any, oracle: ModuleType, params: Any, steps: int
) -> dict[str, torch.Tensor]:
    """Train on random tokens; return the oracle's weights after the same steps."""
    optimizer = build_optimizer(net, params)
    reference = oracle.Dap(params)
    seen: dict[str, list[Any]] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.register_forward_hook(
                lambda _module, inputs, _output, key=f"{name}.weight": seen.setdefault(
                    key, []
                ).append(inputs[0].detach().double().reshape(-1, inputs[0].shape[-1]).numpy())
            )
    named = dict(net.named_parameters())
    weights = {name: p.detach().double().numpy().copy() for name, p in named.items()}
    generator = torch.Generator().manual_seed(3)
    for step in range(steps):
        seen.clear()
        optimizer.zero_grad()
        for _ in range(2):
            tokens = torch.randint(0, 11, (5, 8), generator=generator)
            loss = nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten())
            loss.backward()  # type: ignore[no-untyped-call]
        lr = params.lr / (step + 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        gradients = {
            name: p.grad.double().numpy().copy() for name, p in named.items() if p.grad is not None
        }
        optimizer.step()
        reference.step(weights, gradients, seen, lr)
    return {name: torch.from_numpy(weight) for name, weight in weights.items()}


@pytest.mark.parametrize("values", CASES, ids=str)
def test_steps_follow_the_formulas(net: Any, oracle: ModuleType, values: dict[str, Any]) -> None:
    params = optimizer_params({**BASE, **values}, "")
    expected = train_beside_the_oracle(net, oracle, params, steps=3)
    for name, parameter in net.named_parameters():
        ours = parameter.detach()
        torch.testing.assert_close(ours, expected[name], rtol=2e-5, atol=2e-6, msg=name)


def test_fp32_follows_the_formulas(net: Any, oracle: ModuleType) -> None:
    params = optimizer_params({**BASE, "damping": 0.1, "dap_beta2": 0.0}, "")
    expected = train_beside_the_oracle(net.float(), oracle, params, steps=3)
    for name, parameter in net.named_parameters():
        ours = parameter.detach().double()
        torch.testing.assert_close(ours, expected[name], rtol=1e-3, atol=1e-3, msg=name)


REGRESSIONS: dict[str, tuple[dict[str, Any], float]] = {
    "cholesky": ({"accelerated": 0.0}, 1e-10),
    "newton": ({"accelerated": False, "rcond": 1e-9, "ns_pinv_steps": 200}, 1e-5),
    "chebyshev": ({"accelerated": True, "rcond": 1e-4, "ns_pinv_steps": 200}, 1e-5),
    "gptopt": (
        {"accelerated": 0.0, "gptopt_compat": True, "rcond": 1e-4, "ns_pinv_steps": 200},
        1e-5,
    ),
}
"""Each way to take an inverse, exactly enough, with the tolerance that it then keeps."""


@pytest.mark.parametrize("name", REGRESSIONS)
@pytest.mark.parametrize("micro_batches", [1, 5])
def test_one_step_solves_linear_regression(name: str, micro_batches: int) -> None:
    values, tolerance = REGRESSIONS[name]
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(50, 7, generator=generator, dtype=torch.float64)
    y = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    model = nn.Linear(7, 3, bias=False).double()
    plain = {"lr": 1.0, "weight_decay": 0.0, "dap_beta1": 0.0, "dap_beta2": 0.0, "momentum": 0.0}
    optimizer = build_optimizer(model, optimizer_params({**BASE, **plain, **values}, ""))
    for x_part, y_part in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
        (0.5 * (model(x_part) - y_part).square().sum(1).mean() / micro_batches).backward()
    optimizer.step()
    optimum = torch.from_numpy(np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)[0].T)
    torch.testing.assert_close(model.weight.detach(), optimum, rtol=tolerance, atol=tolerance)


def test_one_step_solves_two_regressions_on_one_input_with_one_inverse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factored = []

    class Counted(DampedInverse):
        def __init__(self, c: torch.Tensor, add: float) -> None:
            factored.append(c.shape)
            super().__init__(c, add)

    monkeypatch.setattr(curvature, "DampedInverse", Counted)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(50, 7, generator=generator, dtype=torch.float64)
    targets = [torch.randn(50, n, generator=generator, dtype=torch.float64) for n in (3, 5)]
    model = nn.ModuleList([nn.Linear(7, n, bias=False) for n in (3, 5)]).double()
    plain = {"lr": 1.0, "weight_decay": 0.0, "dap_beta1": 0.0, "dap_beta2": 0.0, "momentum": 0.0}
    values = {**BASE, **plain, "accelerated": 0.0}
    optimizer = build_optimizer(model, optimizer_params(values, ""))
    for layer, y in zip(model, targets, strict=True):
        (0.5 * (layer(x) - y).square().sum(1).mean()).backward()
    optimizer.step()
    assert factored == [(1, 7, 7)]
    for layer, y in zip(model, targets, strict=True):
        optimum = torch.linalg.lstsq(x, y).solution.T
        torch.testing.assert_close(layer.weight.detach(), optimum, rtol=1e-10, atol=1e-10)


def test_subsampling_by_rows_reaches_the_step(net: Any) -> None:
    values = {**BASE, "xtx_subsample": 0.5, "mb_subsampling": False}
    optimizer: Any = build_optimizer(net, optimizer_params(values, ""))
    net(torch.zeros(5, 8, dtype=torch.long)).sum().backward()
    assert {total.rows for total in optimizer._moments._sums.values()} == {20, 0}


def test_a_gradient_without_an_input_is_said_before_anything_moves(net: Any) -> None:
    optimizer = build_optimizer(net, optimizer_params(BASE, ""))
    net(torch.zeros(5, 8, dtype=torch.long)).sum().backward()
    net.unused.weight.grad = torch.ones_like(net.unused.weight)
    before = [weight.detach().clone() for weight in net.parameters()]
    with pytest.raises(RuntimeError, match="a linear layer has a gradient, but saw no input"):
        optimizer.step()
    assert all(map(torch.equal, before, net.parameters()))
    assert not any(optimizer.state.values())
    net.unused.weight.grad = None
    optimizer.step()
    assert not torch.equal(before[0], net.wte.weight)


def test_debug_timing_logs_each_part(net: Any, caplog: pytest.LogCaptureFixture) -> None:
    optimizer = build_optimizer(net, optimizer_params({**BASE, "debug_timing": True}, ""))
    net(torch.zeros(5, 8, dtype=torch.long)).sum().backward()
    with caplog.at_level(logging.INFO, logger="trainer.optim.dap"):
        optimizer.step()
    assert len(caplog.messages) == 1
    said = r"dap: 4 matrices, 4 second moments: second moments [\d.]+ ms, momentum and inverse "
    assert re.match(said + r"[\d.]+ ms, update [\d.]+ ms$", caplog.messages[0])
