from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from rundir.errors import UserError
from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.groups import split_parameters
from trainer.optim.noneuclidean import polar_factors

CASES: list[dict[str, Any]] = [
    {"name": "muon"},
    {"name": "muon", "weight_decay": 0.2, "momentum": 0.7, "betas": [0.6, 0.8], "eps": 1e-3},
    {"name": "muon", "muon_lr_ratio": 3.0, "polar_method": "jordan", "ns_steps": 3},
    {"name": "scion", "polar_method": "svd"},
    {"name": "muon", "muon_lr": 0.2, "gptopt_compat": True, "ns_steps": 9},
    {"name": "scion", "weight_decay": 0.1},
    {"name": "scion", "momentum": 0.0, "muon_lr_ratio": 10.0},
]


@pytest.mark.parametrize("values", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_follow_the_formulas(
    net: Any, oracle: ModuleType, values: dict[str, Any], dtype: torch.dtype
) -> None:
    net.to(dtype)
    params: Any = optimizer_params({"lr": 0.03, **values}, "")
    optimizer = build_optimizer(net, params)
    reference = oracle.Spectral(params.name, params)
    matrices = set(split_parameters(net).matrices)
    named = dict(net.named_parameters())
    weights = {name: p.detach().double().numpy().copy() for name, p in named.items()}
    generator = torch.Generator().manual_seed(2)
    for step, lr in enumerate((0.03, 0.03, 0.015, 0.006)):
        gradients = {}
        for name, parameter in named.items():
            absent = name == "unused.weight" and step % 2 == 0
            g = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
            parameter.grad = None if absent else g
            if not absent:
                gradients[name] = g.double().numpy()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        reference.step(weights, gradients, matrices, lr)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    for name, parameter in named.items():
        expected = torch.from_numpy(weights[name])
        ours = parameter.detach().double()
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance, msg=name)


def test_batching_by_shape_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 9), (9, 4), (5, 5), (4, 9), (1, 3), (5, 5)]
    matrices = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    together = polar_factors(matrices, "polar-express", 5, gptopt_compat=False)
    for factor, matrix in zip(together, matrices, strict=True):
        [alone] = polar_factors([matrix], "polar-express", 5, gptopt_compat=False)
        assert factor.shape == matrix.shape
        torch.testing.assert_close(factor, alone, rtol=1e-12, atol=1e-12)


def test_the_polar_factor_moves_a_matrix_by_its_learning_rate(net: Any) -> None:
    params = optimizer_params({"name": "muon", "lr": 0.01, "muon_lr": 0.5, "ns_steps": 10}, "")
    optimizer = build_optimizer(net, params)
    before = net.square.weight.detach().clone()
    net.square.weight.grad = torch.randn_like(before)
    optimizer.step()
    moved = torch.linalg.svdvals(net.square.weight.detach() - before)
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5), rtol=1e-3, atol=0)


def test_a_model_of_vectors_alone_has_one_group() -> None:
    model = torch.nn.LayerNorm(4)
    optimizer = build_optimizer(model, optimizer_params({"name": "muon"}, ""))
    assert [group["norm"] for group in optimizer.param_groups] == ["adam_inf"]


def test_the_kernels_step_as_torch_does_in_tritons_interpreter(in_the_interpreter: Any) -> None:
    in_the_interpreter("interpreted_spectral.py")


@pytest.mark.parametrize("name", ["muon", "scion", "muonmax-momo", "muon-torch", "normuon"])
def test_triton_without_a_gpu_is_refused_in_one_line(net: Any, name: str) -> None:
    params = optimizer_params({"name": name, "backend": "triton"}, "")
    with pytest.raises(UserError, match=r"^backend = 'triton'; must be auto or torch: .*\Z"):
        build_optimizer(net, params)
