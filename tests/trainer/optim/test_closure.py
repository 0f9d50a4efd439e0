"""What a step does with the loss, or without one, for every optimizer there is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.params import REGISTRY

NAMES = sorted(REGISTRY)
TRUNCATED = [name for name in NAMES if "momo" in name]


def built(net: Any, name: str) -> torch.optim.Optimizer:
    return build_optimizer(net, optimizer_params({"name": name, "lr": 0.01}, ""))


def loss_of(net: Any) -> torch.Tensor:
    """Return a loss whose gradient is there for every weight but the unused one."""
    loss: torch.Tensor = net(torch.zeros(4, 9, dtype=torch.long)).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


@pytest.mark.parametrize("name", TRUNCATED)
def test_a_truncated_step_without_a_loss_is_refused_in_one_line_and_changes_nothing(
    net: Any, name: str
) -> None:
    optimizer = built(net, name)
    loss_of(net)
    before = copy.deepcopy(net.state_dict())
    for closure in (None, lambda: None):
        with pytest.raises(RuntimeError) as caught:
            optimizer.step(closure)  # type: ignore[arg-type]
        said = str(caught.value)
        assert said.startswith(f"the step of {name} depends on the loss: call step(closure) with")
        assert len(said.splitlines()) == 1
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not optimizer.state_dict()["state"]


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(TRUNCATED)))
def test_every_other_step_does_without(net: Any, name: str) -> None:
    optimizer = built(net, name)
    before = net.up.weight.detach().clone()
    for _ in range(2):  # SOAP's first step finds its bases and moves nothing
        loss_of(net)
        assert optimizer.step() is None
    assert not torch.equal(net.up.weight.detach(), before)


@pytest.mark.parametrize("name", NAMES)
def test_the_closure_may_compute_the_gradients_and_its_loss_is_returned(
    net: Any, name: str
) -> None:
    optimizer = built(net, name)
    before = net.up.weight.detach().clone()

    for _ in range(2):
        returned: Any = optimizer.step(lambda: loss_of(net))  # type: ignore[arg-type, return-value]
        assert returned.detach() > 0
    assert not torch.equal(net.up.weight.detach(), before)
