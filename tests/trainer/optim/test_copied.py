from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.params import REGISTRY


def take_step(net: Any, optimizer: Any, seed: int) -> None:
    tokens = torch.randint(0, 11, (4, 9), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten())
    loss.backward()
    optimizer.clip_grad_norm(0.1)
    optimizer.step(lambda: loss)


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_copy_goes_on_as_the_original_and_by_itself(net: Any, name: str, before: int) -> None:
    net.float()
    chosen = optimizer_params({"name": name, "lr": 0.01, "weight_decay": 0.1}, "")
    optimizer = build_optimizer(net, chosen)
    for step in range(before):
        take_step(net, optimizer, step)
    kept, their_optimizer = copy.deepcopy((net, optimizer))
    at_first = copy.deepcopy(kept.state_dict())
    for step in range(2):
        take_step(net, optimizer, 10 + step)
    for key, weight in kept.state_dict().items():
        assert torch.equal(weight, at_first[key]), key
    for step in range(2):
        take_step(kept, their_optimizer, 10 + step)
    for (key, ours), theirs in zip(net.named_parameters(), kept.parameters(), strict=True):
        assert torch.equal(ours, theirs), key


def test_a_copy_has_no_step_that_a_scheduler_wrapped_and_no_clip(net: Any) -> None:
    optimizer: Any = build_optimizer(net, optimizer_params({"name": "lion", "lr": 0.01}, ""))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    net(torch.zeros(4, 9, dtype=torch.long)).sum().backward()
    optimizer.clip_grad_norm(1e-3)
    kept, theirs = copy.deepcopy((net, optimizer))
    before = net.up.weight.detach().clone()
    for weight in kept.parameters():
        weight.grad = torch.ones_like(weight)
    theirs.step()
    assert torch.equal(net.up.weight, before)
    assert not torch.equal(kept.up.weight, before)
    assert theirs._take_clip_factor() is None
