"""A copy of the state to the host is queued, not waited for, and is of the moment it was asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from trainer.checkpoints.snapshot import HostCopy


def test_a_copy_is_whole_though_the_state_changes_at_once(
    cuda: torch.device, no_sync: Callable[[], AbstractContextManager[None]]
) -> None:
    weights = [torch.full((4096, 4096), float(number), device=cuda) for number in range(8)]
    state = {"model": weights, "step": torch.tensor(3.0)}
    copy = HostCopy(cuda)
    copy.of(state)
    copy.wait()
    with no_sync():
        found = copy.of(state)  # page-locked memory is there now
        for weight in weights:
            weight.add_(100.0)
    copy.wait()
    for number, weight in enumerate(found["model"]):
        assert weight.is_pinned()
        assert torch.equal(weight, torch.full((4096, 4096), float(number)))
    assert found["step"] == 3.0
