"""Every optimizer's step in a CUDA graph: new gradients, losses and rates from replay to replay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from trainer.config import GPTConfig
from trainer.model import GPT
from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.params import REGISTRY

VALUES: dict[str, dict[str, Any]] = {
    # Divided by its own root, a direction that rounding decides would be as large as any.
    "dap-ns-nadam": {"dap_beta2": 0.0, "accelerated": 0.05},
    "dap-ns-nadam-accel": {"dap_beta2": 0.0, "rcond": 0.05, "damping": 0.3},
    "sign-gd-nonlmo": {"lr": 1e-6},
}
FREQUENCY = 2
"""Of SOAP's refreshes where they are looked at; its default is longer than the tests here."""
LOSSES = (4.0, 3.0, 3.5, 2.5, 3.2, 3.1)
WARM_UP = 2


@pytest.fixture
def net(cuda: torch.device) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(n_embd=128, n_layer=2, n_head=4, vocab_size=64), 32).to(cuda)


class Trained:
    """A model with gradients, tokens, a loss and an optimizer's rates that stay where they are."""

    def __init__(self, net: GPT, name: str, *, rate_in_tensor: bool, **own: Any) -> None:
        values = {"lr": 0.01, "weight_decay": 0.1, **VALUES.get(name, {}), **own}
        params = optimizer_params({"name": name, **values}, "")
        self.net = net
        self.optimizer: Any = build_optimizer(net, params)
        device = next(net.parameters()).device
        self.tokens = torch.zeros(8, 32, dtype=torch.long, device=device)
        self.loss = torch.zeros((), device=device)
        for weight in net.parameters():
            weight.grad = torch.zeros_like(weight)
        for group in self.optimizer.param_groups if rate_in_tensor else ():
            group["lr"] = torch.tensor(group["initial_lr"], device=device)

    def prepare(self, step: int) -> None:
        """Put this step's numbers where they are read."""
        generator = torch.Generator().manual_seed(step)
        self.tokens.copy_(torch.randint(0, 64, self.tokens.shape, generator=generator))
        self.loss.fill_(LOSSES[step])
        for weight in self.net.parameters():
            assert weight.grad is not None
            weight.grad.copy_(0.02 * torch.randn(weight.shape, generator=generator))
        for group in self.optimizer.param_groups:
            rate = group["initial_lr"] / (1 + step)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def step(self) -> Any:
        """Look at inputs, as DAP has to, and step."""
        self.net(self.tokens, self.tokens)
        return self.optimizer.step(lambda: self.loss)


def warm_up(trained: Trained) -> None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in range(WARM_UP):
            trained.prepare(step)
            trained.step()
    torch.cuda.current_stream().wait_stream(side)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_replays_are_the_steps_that_an_eager_optimizer_takes(net: GPT, name: str) -> None:
    start, twin = copy.deepcopy(net), copy.deepcopy(net)
    captured = Trained(net, name, rate_in_tensor=True)
    eager = Trained(twin, name, rate_in_tensor=False)
    warm_up(captured)
    warm_up(eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for step in range(WARM_UP, len(LOSSES) - 1):
        captured.prepare(step)
        graph.replay()
        eager.prepare(step)
        eager.step()
    scales = [getattr(each.optimizer, "step_scale", None) for each in (captured, eager)]
    torch.testing.assert_close(*scales, rtol=1e-3, atol=0)
    # And one more that is no replay goes on from there.
    for each in (captured, eager):
        each.prepare(len(LOSSES) - 1)
        each.step()
    columns = (each.named_parameters() for each in (net, twin, start))
    for (key, ours), (_, expected), (_, before) in zip(*columns, strict=True):
        moved = (expected - before).norm()
        assert moved > 0, key
        assert (ours - expected).norm() < 1e-3 * moved, key


def test_soaps_bases_are_refreshed_between_replays(net: GPT) -> None:
    twin = copy.deepcopy(net)
    own = {"precondition_frequency": FREQUENCY}
    captured = Trained(net, "soap", rate_in_tensor=True, **own)
    eager = Trained(twin, "soap", rate_in_tensor=False, **own)
    warm_up(captured)
    warm_up(eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for step in range(WARM_UP, len(LOSSES)):
        captured.prepare(step)
        graph.replay()
        if step % FREQUENCY == 0:
            captured.optimizer.refresh()
        eager.prepare(step)
        eager.step()
    layer, other = net.blocks[0].mlp.c_fc.weight, twin.blocks[0].mlp.c_fc.weight
    for key in ("row_basis", "column_basis"):
        ours, expected = captured.optimizer.state[layer][key], eager.optimizer.state[other][key]
        # Columns are eigenvectors: either sign, and close ones may turn into each other.
        assert (ours - expected).norm() < 1e-2 * expected.norm(), key
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        captured.loss.add_(1)  # an empty graph would be warned of
        with pytest.raises(RuntimeError, match="refreshes its bases between replays"):
            captured.optimizer.refresh()
