from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from trainer.kernels import AdamWScalars, adamw_step
from trainer.kernels.adamw import adamw_step_torch
from trainer.kernels.operands import Slot
from trainer.optim import optimizer_params
from trainer.optim.adamw import KernelAdam, KernelAdamW, KernelNAdam


def test_the_kernels_agree_with_oracles_and_twins_in_tritons_interpreter(
    in_the_interpreter: Any,
) -> None:
    in_the_interpreter("interpreted_elementwise.py")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_on_tensors_of_no_optimizer(dtype: torch.dtype, adamw_oracle: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(5, 7), (), (0,), (130,)]
    weights = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    slots = [Slot(w, w, torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    oracles = [adamw_oracle(weight) for weight in weights]
    for step in range(1, 5):
        gradients = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        now = [slot._replace(gradient=g) for slot, g in zip(slots, gradients, strict=True)]
        clip = torch.tensor(0.5, dtype=dtype)
        adamw_step(now, AdamWScalars(0.03, 0.9, 0.99, 1e-8, 0.1, step), "torch", clip)
        for oracle, gradient in zip(oracles, gradients, strict=True):
            oracle.step(0.5 * gradient, lr=0.03, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for weight, oracle in zip(weights, oracles, strict=True):
        torch.testing.assert_close(weight.double(), oracle.weight, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("step", [1, 7, math.inf, torch.tensor([3.0, 9.0])], ids=str)
@pytest.mark.parametrize("way", ["alike", "transposed gradients", "gaps"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_torchs_fused_step_agrees_with_the_twin(
    step: float | torch.Tensor, way: str, clip: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    slots = [Slot(*(drawn(30, 40) for _ in range(4))), Slot(*(drawn(70) for _ in range(4)))]
    twins = [Slot(*(tensor.clone() for tensor in slot)) for slot in slots]
    if way == "transposed gradients":
        slots[0] = slots[0]._replace(gradient=slots[0].gradient.T.contiguous().T)
    elif way == "gaps":
        slots[0] = slots[0]._replace(weight=torch.cat((slots[0].weight, drawn(30, 3)), 1)[:, :40])
    in_tensors = isinstance(step, torch.Tensor)
    step = step.double() if in_tensors else step
    lr = torch.tensor(0.03, dtype=torch.float64) if in_tensors else 0.03
    scalars = AdamWScalars(lr, 0.9, 0.99, 1e-8, 0.1, step)
    factor = None if clip is None else torch.tensor(clip, dtype=torch.float64)
    before = [slot.gradient.clone() for slot in slots]
    adamw_step(slots, scalars, "torch", factor)
    adamw_step_torch(twins, scalars, factor)
    for slot, twin, gradient in zip(slots, twins, before, strict=True):
        torch.testing.assert_close(tuple(slot), tuple(twin), rtol=1e-12, atol=1e-12)
        assert torch.equal(slot.gradient, gradient)


def test_each_weight_has_its_own_count_beside_an_empty_one() -> None:
    sizes, counts = (3, 0, 5), torch.tensor([2.0, 50.0, 9.0], dtype=torch.float64)
    slots = [Slot(*(torch.full((size,), x) for x in (1.0, 0.2, 0.3, 0.4))) for size in sizes]
    twins = [Slot(*(tensor.clone() for tensor in slot)) for slot in slots]
    adamw_step(slots, AdamWScalars(0.03, 0.9, 0.99, 1e-8, 0.1, counts), "torch")
    for slot, twin, count in zip(slots, twins, counts.tolist(), strict=True):
        adamw_step([twin], AdamWScalars(0.03, 0.9, 0.99, 1e-8, 0.1, count), "torch")
        torch.testing.assert_close(tuple(slot), tuple(twin), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "nadamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_adams_twin_agrees_with_the_oracle(
    name: str, dtype: torch.dtype, oracle_of: Any
) -> None:
    p: Any = optimizer_params(
        {"name": name, "betas": [0.9, 0.99], "weight_decay": 0.1}
        | ({"momentum_decay": 4e-3} if name == "nadam" else {}),
        "",
    )
    cls: Any = {"adam": KernelAdam, "adamw": KernelAdamW}.get(name, KernelNAdam)
    options = (
        {}
        if cls is not KernelNAdam
        else {"momentum_decay": p.momentum_decay, "decoupled_weight_decay": name == "nadamw"}
    )
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(5, 7), (), (130,)]
    weights = [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in shapes]
    x = {i: w.detach().double().numpy().copy() for i, w in enumerate(weights)}
    optimizer = cls(
        weights, lr=0.03, betas=p.betas, eps=1e-8, weight_decay=0.1, backend="torch", **options
    )
    oracle = oracle_of(p)
    for step in range(4):
        for weight in weights[step % 2 :]:
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=dtype)
        for weight in weights[: step % 2]:
            weight.grad = None
        optimizer.step()
        gradients = {
            i: w.grad.double().numpy() for i, w in enumerate(weights) if w.grad is not None
        }
        oracle.step(x, gradients, 0.03)
    # The products of NAdam's momenta are kept in fp32, as torch keeps them.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-7 if "nadam" in name else 1e-12
    for i, weight in enumerate(weights):
        expected = torch.from_numpy(np.asarray(x[i]))
        torch.testing.assert_close(
            weight.detach().double(), expected, rtol=tolerance, atol=tolerance
        )


def test_a_step_without_gradients_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = KernelAdamW(
        [weight], lr=1.0, betas=(0.9, 0.9), eps=1e-8, weight_decay=0.5, backend="torch"
    )
    optimizer.step()
    adamw_step([], AdamWScalars(1.0, 0.9, 0.9, 1e-8, 0.5, 1), "torch")
    assert torch.equal(weight.detach(), torch.ones(3))
    assert not optimizer.state


def test_clipping_is_that_of_torch_without_a_write_to_the_gradients() -> None:
    weights, twins = ([torch.nn.Parameter(torch.ones(n)) for n in (3, 5, 2)] for _ in range(2))
    hyper: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.9), "eps": 0.1, "weight_decay": 0.0}
    ours = KernelAdamW(weights, **hyper, backend="torch")
    theirs = torch.optim.AdamW(twins, **hyper)
    for limit in (1.0, 100.0, float("inf")):
        for weight, twin in zip(weights[:2], twins[:2], strict=True):
            weight.grad = torch.arange(1.0, 1 + len(weight))
            twin.grad = weight.grad.clone()
        norm = ours.clip_grad_norm(limit)
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(twins, limit))
        ours.step()
        theirs.step()
        assert torch.equal(weights[0].grad, torch.arange(1.0, 4.0))
    for weight, twin in zip(weights, twins, strict=True):
        torch.testing.assert_close(weight, twin)


def test_groups_step_with_their_own_learning_rate_and_decay() -> None:
    def groups() -> list[dict[str, Any]]:
        weights = [torch.nn.Parameter(torch.full((4,), 2.0)) for _ in range(2)]
        for weight in weights:
            weight.grad = torch.arange(4.0)
        return [
            {"params": [weights[0]], "lr": 0.1, "weight_decay": 0.0},
            {"params": [weights[1]], "lr": 0.01, "weight_decay": 0.3},
        ]

    hyper: dict[str, Any] = {"lr": 1.0, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}
    ours = KernelAdamW(groups(), **hyper, backend="torch")  # type: ignore[arg-type]
    theirs = torch.optim.AdamW(groups(), **hyper)
    for _ in range(3):
        ours.step()
        theirs.step()
    for our, their in zip(ours.param_groups, theirs.param_groups, strict=True):
        torch.testing.assert_close(our["params"][0], their["params"][0])
