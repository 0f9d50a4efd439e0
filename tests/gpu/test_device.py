"""The fixtures of this folder do what the other tests of it rely on."""

from __future__ import annotations

import pytest
import torch

from trainer.kernels.backend import launch_fault


def test_a_wait_for_the_device_is_an_error_within_no_sync_only(cuda, no_sync) -> None:
    value = torch.ones(3, device=cuda)
    with no_sync():
        doubled = value * 2
        with pytest.raises(RuntimeError, match="synchronizing"):
            doubled.sum().item()
    assert doubled.sum().item() == 6
    assert torch.cuda.get_sync_debug_mode() == 0


@pytest.mark.usefixtures("cuda")
def test_triton_can_launch_here() -> None:
    assert launch_fault() is None
