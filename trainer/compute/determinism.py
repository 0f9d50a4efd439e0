"""The same bits from the same run, on CUDA too: ``training_params.deterministic``."""

from __future__ import annotations

import os

import torch

from rundir.errors import IllegalValue

VARIABLE, WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
"""cuBLAS's: 8 buffers of 4 MiB. Without a fixed one its sums may have another order each time."""


def be_deterministic(wanted: bool) -> None:
    """Allow only operations that give the same bits each time, or all of them again.

    An operation that has no such form then raises a RuntimeError that names it. torch looks for the
    variable at the first matrix product of a process, and never again: call this before CUDA.

    Raises:
        IllegalValue: it is too late.
    """
    if wanted:
        is_late: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        if VARIABLE not in os.environ and is_late:
            must = (
                "false: this process has used CUDA already, without "
                f"{VARIABLE}={WORKSPACE} in its environment"
            )
            raise IllegalValue("training.training_params.deterministic", wanted, must)
        os.environ.setdefault(VARIABLE, WORKSPACE)
    if wanted or torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(wanted, warn_only=False)
        torch.backends.cudnn.benchmark = False
