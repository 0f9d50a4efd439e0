"""How exactly CUDA multiplies fp32 matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Multiply in fp32 in the block, whatever ``tensorcore_precision`` allows the model.

    TF32 keeps 10 bits. An inverse times a condition number of 1,000 would have none left, and the
    iterative inverses would not converge.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
