"""No optimizer's step makes the host wait for the device, nor does its clip."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from trainer.config import GPTConfig
from trainer.model import GPT
from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.params import REGISTRY

STEPS = 4
"""Enough for SOAP, which looks for its first eigenvectors before, to refresh its bases."""
VALUES: dict[str, dict[str, Any]] = {"soap": {"precondition_frequency": 2}}


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_no_step_after_a_weights_first_makes_the_host_wait(
    cuda: torch.device, no_sync: Callable[[], AbstractContextManager[None]], name: str
) -> None:
    torch.manual_seed(0)
    net = GPT(GPTConfig(n_embd=128, n_layer=2, n_head=4, vocab_size=64), 32).to(cuda)
    values = {"name": name, "lr": 0.01, "weight_decay": 0.1, **VALUES.get(name, {})}
    optimizer: Any = build_optimizer(net, optimizer_params(values, ""))
    tokens = torch.randint(0, 64, (8, 32), device=cuda)
    losses = torch.linspace(4, 3, 1 + STEPS, device=cuda)
    # At addresses of their own, so that tables of them have to reach the device.
    gradients = [[torch.randn_like(w) for w in net.parameters()] for _ in losses]

    def step(number: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] / (1 + number)
        if hasattr(optimizer, "clip_grad_norm"):
            optimizer.clip_grad_norm(1.0)
        optimizer.step(lambda: losses[number])

    for number, now in enumerate(gradients):
        for weight, gradient in zip(net.parameters(), now, strict=True):
            weight.grad = gradient
        net(tokens, tokens)  # whose inputs DAP looks at
        if number == 0:
            step(number)
            continue
        with no_sync():
            step(number)
