"""Every optimizer continues on the device from a checkpoint that was read to the host."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

from trainer.config import GPTConfig
from trainer.model import GPT
from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.params import REGISTRY

LOSSES = (4.0, 3.9, 3.8, 3.7)


def built(net: Any, name: str) -> Any:
    values: dict[str, Any] = {"name": name, "lr": 0.01, "weight_decay": 0.1}
    if name.startswith("dap"):
        values["ema_beta"] = 0.5
    return build_optimizer(net, optimizer_params(values, ""))


def train(net: Any, optimizer: Any, steps: range) -> None:
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        weights = list(net.parameters())
        tokens = torch.randint(0, 64, (4, 16), generator=generator).to(weights[0].device)
        net(tokens, tokens)  # whose inputs DAP looks at
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight)
        optimizer.clip_grad_norm(1.0)
        optimizer.step(lambda number=number: LOSSES[number])


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_checkpoint_read_to_the_host_continues_on_the_device(
    cuda: torch.device, name: str
) -> None:
    torch.manual_seed(0)
    net = GPT(GPTConfig(n_embd=32, n_layer=1, n_head=2, vocab_size=64), 16).to(cuda)
    first = built(net, name)
    train(net, first, range(2))
    twin = copy.deepcopy(net)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = built(twin, name)
    second.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    for weight, other in zip(net.parameters(), twin.parameters(), strict=True):
        for key, value in first.state[weight].items():
            found = second.state[other][key]
            assert (found.device, found.dtype) == (value.device, value.dtype), key
            assert torch.equal(found, value), key
    train(net, first, range(2, 4))
    train(twin, second, range(2, 4))
    for ours, expected in zip(twin.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
