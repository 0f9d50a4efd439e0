"""What only a GPU can prove: ``python -m pytest tests/gpu``, skipped where there is no CUDA device.

Needs torch, triton, numpy and pytest only; neither Hydra nor the project's installation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch


def _missing() -> str:
    """Return why no CUDA device can be used here; empty where one can."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return ""


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The CUDA device; a test that asks for it is skipped where there is none."""
    reason = _missing()
    if reason:
        pytest.skip(reason)
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def _refusing_sync() -> Iterator[None]:
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.fixture
def no_sync(cuda: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """``with no_sync():`` raises RuntimeError where the host waits for the device.

    Torch tells of the waits that it causes itself (``item``, ``nonzero``, a copy to the host, a
    copy from pageable memory); an explicit ``torch.cuda.synchronize`` is not counted.
    """
    return _refusing_sync
