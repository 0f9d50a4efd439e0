"""The spectral optimizers on a GPU: the CPU's numbers, no waiting, and a step that can be captured.

Gradients are drawn on the CPU, so that both devices see the same ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.optim import build_optimizer, muon, noneuclidean, optimizer_params
from trainer.optim.polar import polar_factor

CASES: list[dict[str, Any]] = [
    {"name": "muon", "lr": 0.01},
    {"name": "muon", "lr": 0.01, "weight_decay": 0.1, "backend": "torch"},
    {"name": "scion", "lr": 0.001, "muon_lr_ratio": 10.0},
    {"name": "scion", "lr": 0.001, "weight_decay": 0.1, "backend": "torch"},
    {"name": "muon-momo", "lr": 0.5, "truncate_loss": 3.0},
    {"name": "muon-momo", "lr": 0.5, "nuc_approx": "last", "prod_norm": "l2"},
    {"name": "muonmax-momo", "lr": 5.0, "truncate_loss": 3.0},
    {"name": "muonmax-momo", "lr": 0.03, "nuc_approx": "frobenius", "truncate_loss": 0.0},
    {"name": "muon-torch", "lr": 0.01, "weight_decay": 0.1},
    {"name": "muon-torch", "lr": 0.01, "adjust_lr_fn": "match_rms_adamw", "nesterov": False},
    {"name": "normuon", "lr": 0.01, "weight_decay": 0.1},
]
LOSSES = (4.0, 3.9, 3.7, 3.8, 3.6)


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """Another test may have allowed TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    sizes = [(96, 160), (160, 96), (64, 64), (96, 160), (33, 130)]
    layers = {f"layer{i}": nn.Linear(*size) for i, size in enumerate(sizes)}
    return nn.ModuleDict({"wte": nn.Embedding(70, 96), "norm": nn.LayerNorm(96), **layers})


def built(model: nn.Module, values: dict[str, Any]) -> torch.optim.Optimizer:
    return build_optimizer(model, optimizer_params(values, ""))


def draw_gradients(model: nn.Module, seed: int) -> None:
    """Write into the gradients that are there: a captured step reads them where they were."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        drawn = 0.02 * torch.randn(weight.shape, generator=generator)
        if weight.grad is None:
            weight.grad = torch.empty_like(weight)
        weight.grad.copy_(drawn)


def steps(model: nn.Module, values: dict[str, Any]) -> list[Tensor]:
    """Train a little and return how far each weight went, in fp32 on the CPU."""
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer: Any = built(model, values)
    for seed, value in enumerate(LOSSES):
        draw_gradients(model, seed)
        if seed % 2:
            optimizer.clip_grad_norm(1.0)
        loss = torch.tensor(value, device=before[0].device)
        optimizer.step(lambda loss=loss: loss)
    after = model.parameters()
    return [(w.detach() - old).cpu() for w, old in zip(after, before, strict=True)]


def distance(ours: Tensor, expected: Tensor) -> float:
    return ((ours - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("values", CASES, ids=str)
def test_fp32_products_give_the_cpus_numbers(
    cuda: torch.device, model: nn.Module, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    def in_fp32(
        matrices: Sequence[Tensor], method: Any, ns_steps: int, gptopt_compat: bool, _: str
    ) -> list[Tensor]:
        wide = {"dtype": torch.float32}
        return [polar_factor(m[None], method, ns_steps, gptopt_compat, **wide)[0] for m in matrices]

    monkeypatch.setattr(noneuclidean, "polar_factors", in_fp32)
    monkeypatch.setattr(muon, "polar_factors", in_fp32)
    expected = steps(copy.deepcopy(model), values)
    ours = steps(model.to(cuda), values)
    for each, other in zip(ours, expected, strict=True):
        assert distance(each, other) < 1e-3


@pytest.mark.parametrize("values", CASES, ids=str)
def test_bf16_products_stay_near_the_cpus_numbers(
    cuda: torch.device, model: nn.Module, values: dict[str, Any]
) -> None:
    expected = steps(copy.deepcopy(model), values)
    ours = steps(model.to(cuda), values)
    for each, other in zip(ours, expected, strict=True):
        assert distance(each, other) < 0.05


@pytest.mark.parametrize("values", CASES, ids=str)
def test_no_step_waits_for_the_device(
    cuda: torch.device,
    no_sync: Callable[[], AbstractContextManager[None]],
    model: nn.Module,
    values: dict[str, Any],
) -> None:
    model.to(cuda)
    optimizer: Any = built(model, values)
    loss = torch.tensor(4.0, device=cuda)
    for seed in range(3):
        draw_gradients(model, seed)
        with no_sync():
            optimizer.clip_grad_norm(1.0)
            optimizer.step(lambda: loss)


@pytest.mark.parametrize("values", CASES, ids=str)
def test_a_captured_step_goes_on_as_the_eager_one(
    cuda: torch.device, model: nn.Module, values: dict[str, Any]
) -> None:
    model.to(cuda)
    twin, loss = copy.deepcopy(model), torch.tensor(4.0, device=cuda)
    captured, eager = built(model, values), built(twin, values)
    side = torch.cuda.Stream(cuda)
    side.wait_stream(torch.cuda.current_stream(cuda))
    with torch.cuda.stream(side):
        for seed in range(2):
            for each, optimizer in ((model, captured), (twin, eager)):
                draw_gradients(each, seed)
                optimizer.step(lambda: loss)
    torch.cuda.current_stream(cuda).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step(lambda: loss)
    for seed, value in enumerate(LOSSES, start=2):
        loss.fill_(value)
        draw_gradients(model, seed)
        graph.replay()
        draw_gradients(twin, seed)
        eager.step(lambda: loss)
    for ours, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_the_kernels_are_taken_and_agree_with_torch(cuda: torch.device, model: nn.Module) -> None:
    model.to(cuda)
    twin = copy.deepcopy(model)
    values: dict[str, Any] = {"name": "muon", "lr": 0.01, "weight_decay": 0.1}
    pairs: list[tuple[nn.Module, Any]] = [
        (model, built(model, values)),
        (twin, built(twin, {**values, "backend": "torch"})),
    ]
    for seed in range(4):
        for each, optimizer in pairs:
            draw_gradients(each, seed)
            optimizer.clip_grad_norm(1.0)
            optimizer.step()
    assert len(pairs[0][1]._plans) == 1
    assert not len(pairs[1][1]._plans)
    for ours, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_the_first_step_is_not_captured(cuda: torch.device, model: nn.Module) -> None:
    model.to(cuda)
    optimizer = built(model, {"name": "muon", "lr": 0.01})
    draw_gradients(model, 0)
    with pytest.raises(RuntimeError, match="take a step before capturing one"):
        capture(optimizer, model)


def capture(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        model.norm(model.norm.bias)  # torch warns of a graph that holds nothing
        optimizer.step()
