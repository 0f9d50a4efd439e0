"""ademamix, mars, schedule-free-adamw and soap on CUDA: as on a CPU, without waiting, in graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn

from trainer.optim import build_optimizer, optimizer_params

ELEMENTWISE: list[dict[str, Any]] = [
    {**values, "backend": backend}
    for values in (
        {"name": "ademamix", "alpha_warmup": 5, "beta3_warmup": 4, "weight_decay": 0.1},
        {"name": "ademamix", "beta3": 0.99},
        {"name": "mars", "weight_decay": 0.1},
        {"name": "mars", "optimize_1d": True, "gamma": 0.2},
        {"name": "schedule-free-adamw", "warmup_steps": 4, "weight_decay": 0.1},
    )
    for backend in ("torch", "triton")
]
SOAP = {"name": "soap", "precondition_frequency": 3, "weight_decay": 0.1}
NoSync = Callable[[], AbstractContextManager[None]]


@pytest.fixture(autouse=True)
def _whole_fp32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


class Net(nn.Module):
    """Square matrices alone have a first basis that rounding does not choose."""

    def __init__(self, *, square: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wte = nn.Embedding(50, 48)
        self.first = nn.Linear(48, 48)
        self.second = nn.Linear(48, 48 if square else 131, bias=False)
        self.norm = nn.LayerNorm(48)


def optimized(net: nn.Module, values: dict[str, Any]) -> torch.optim.Optimizer:
    """On a CPU by torch, whatever the backend."""
    on_cuda = next(net.parameters()).is_cuda
    values = {"lr": 0.01, **values, **({} if on_cuda else {"backend": "torch"})}
    return build_optimizer(net, optimizer_params(values, ""))


def fill_gradients(net: nn.Module, seed: int) -> None:
    """The same numbers on every device, where the last gradient lay."""
    generator = torch.Generator().manual_seed(seed)
    for weight in net.parameters():
        g = torch.randn(weight.shape, generator=generator)
        if weight.grad is None:
            weight.grad = g.to(weight.device)
        else:
            weight.grad.copy_(g)


def assert_same(ours: nn.Module, expected: nn.Module, tolerance: float) -> None:
    for weight, other in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(
            weight.detach().cpu(), other.detach(), rtol=tolerance, atol=tolerance
        )


def capture(optimizer: torch.optim.Optimizer, net: Net) -> None:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        net.norm(net.first.bias)  # torch warns of a graph that holds nothing
        optimizer.step()


@pytest.mark.parametrize("values", ELEMENTWISE, ids=str)
def test_cuda_steps_as_a_cpu_does(cuda: torch.device, values: dict[str, Any]) -> None:
    host = Net(square=False)
    device = copy.deepcopy(host).to(cuda)
    pairs = [(net, optimized(net, values)) for net in (host, device)]
    for step in range(8):
        for net, optimizer in pairs:
            fill_gradients(net, step)
            optimizer.step()
    assert_same(device, host, 1e-5)


def test_soap_steps_as_on_a_cpu(cuda: torch.device) -> None:
    host = Net(square=True)
    device = copy.deepcopy(host).to(cuda)
    first, second = optimized(host, SOAP), optimized(device, SOAP)
    for step in range(2):
        fill_gradients(host, step)
        first.step()
    device.load_state_dict(host.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for step in range(2, 12):
        for net, optimizer in ((host, first), (device, second)):
            fill_gradients(net, step)
            optimizer.step()
    assert_same(device, host, 2e-3)


def test_soap_finds_its_first_eigenvectors_on_cuda(cuda: torch.device) -> None:
    net = Net(square=False).to(cuda)
    optimizer = optimized(net, SOAP)
    fill_gradients(net, 0)
    optimizer.step()
    for weight in (net.first.weight, net.second.weight):
        for side in ("row", "column"):
            q = optimizer.state[weight][f"{side}_basis"].double()
            moment = optimizer.state[weight][f"{side}_moment"].double()
            turned = q.T @ moment @ q
            identity = torch.eye(len(q), dtype=torch.float64, device=cuda)
            # Of backward stable methods; cuSOLVER's on an H100 is 2 n eps away at n = 48.
            limit = 4 * len(q) * torch.finfo(torch.float32).eps
            torch.testing.assert_close(q.T @ q, identity, rtol=0, atol=limit)
            off = turned - turned.diagonal().diag()
            assert off.abs().max() < limit * turned.diagonal().max()


@pytest.mark.parametrize("values", [*ELEMENTWISE, SOAP], ids=str)
def test_a_step_after_the_first_does_not_wait_for_the_device(
    cuda: torch.device, no_sync: NoSync, values: dict[str, Any]
) -> None:
    net = Net(square=False).to(cuda)
    optimizer = optimized(net, values)
    for step in range(3):
        fill_gradients(net, step)
        optimizer.step()
    with no_sync():
        for _ in range(4):  # SOAP refreshes its bases in one of them
            optimizer.step()


@pytest.mark.parametrize("values", ELEMENTWISE, ids=str)
def test_a_captured_step_counts_as_it_is_replayed(
    cuda: torch.device, values: dict[str, Any]
) -> None:
    host = Net(square=False)
    device = copy.deepcopy(host).to(cuda)
    first, second = optimized(host, values), optimized(device, values)
    rates = [0.01, 0.01, 0.02, 0.005, 0.01, 0.03]
    for group in second.param_groups:
        group["lr"] = torch.tensor(rates[0], device=cuda)
    graph = torch.cuda.CUDAGraph()
    for step, rate in enumerate(rates):
        fill_gradients(host, step)
        fill_gradients(device, step)
        for group in first.param_groups:
            group["lr"] = rate
        for group in second.param_groups:
            group["lr"].fill_(rate)
        first.step()
        if step == 0:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                second.step()
            torch.cuda.current_stream().wait_stream(stream)
            continue
        if step == 1:
            with torch.cuda.graph(graph):
                second.step()
        graph.replay()
    second.step()  # and an eager step afterwards counts on
    first.step()
    assert_same(device, host, 1e-5)


@pytest.mark.parametrize("values", [*ELEMENTWISE, SOAP], ids=str)
def test_the_first_step_is_not_captured(cuda: torch.device, values: dict[str, Any]) -> None:
    net = Net(square=False).to(cuda)
    optimizer = optimized(net, values)
    fill_gradients(net, 0)
    with pytest.raises(RuntimeError, match="take a step before capturing one"):
        capture(optimizer, net)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_soaps_captured_steps_and_refreshes_are_those_of_a_cpu(
    cuda: torch.device, backend: str
) -> None:
    # A larger eps, or a direction that rounding decides would be as large as any.
    values = {**SOAP, "eps": 1e-2}
    host = Net(square=True)
    device = copy.deepcopy(host).to(cuda)
    first, second = optimized(host, values), optimized(device, {**values, "backend": backend})
    graph = torch.cuda.CUDAGraph()
    for step in range(9):
        fill_gradients(host, step)
        fill_gradients(device, step)
        first.step()
        if step == 0:
            # The device's own first eigenvectors may have other signs.
            second.load_state_dict(copy.deepcopy(first.state_dict()))
            device.load_state_dict(host.state_dict())
        elif step < 3:
            second.step()
        else:
            if step == 3:
                torch.cuda.synchronize()
                with torch.cuda.graph(graph):
                    second.step()
            graph.replay()
            if step % 3 == 0:
                second.refresh()
    assert_same(device, host, 2e-3)


def test_the_average_goes_in_and_out_on_cuda(cuda: torch.device) -> None:
    net = Net(square=False).to(cuda)
    optimizer: Any = optimized(net, {"name": "schedule-free-adamw"})
    for step in range(3):
        fill_gradients(net, step)
        optimizer.step()
    before = [weight.detach().clone() for weight in net.parameters()]
    optimizer.eval()
    assert not torch.equal(net.first.weight.detach(), before[1])
    optimizer.train()
    for weight, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(weight.detach(), old)
