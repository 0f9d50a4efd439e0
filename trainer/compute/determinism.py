"""The same bits from the same run, on CUDA too: ``training_params.deterministic``."""

from __future__ import annotations

import os

import torch

WORKSPACE = ":4096:8"
"""Of cuBLAS: 8 buffers of 4 MiB. Without a fixed one its sums may have another order each time."""


def be_deterministic(wanted: bool) -> None:
    """Allow only operations that give the same bits each time, or all of them again.

    An operation that has no such form then raises a RuntimeError that names it. cuBLAS reads its
    workspace's size when a process first uses CUDA.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
    if wanted or torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(wanted, warn_only=False)
        torch.backends.cudnn.benchmark = False
