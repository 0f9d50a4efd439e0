"""One order in memory: what lets a kernel walk tensors together without knowing their strides."""

from __future__ import annotations

import torch
from torch import Tensor


def alike(weight: Tensor, other: Tensor) -> bool:
    """Whether both have one type and one order in memory."""
    return other.dtype == weight.dtype and other.stride() == weight.stride()


def laid_out_alike(weight: Tensor, other: Tensor) -> Tensor:
    """Return a tensor in the weight's type and order in memory, copied if it is not.

    torch's fused steps go by that order and do not look: on a CPU a transposed gradient moves the
    wrong numbers.
    """
    return other if alike(weight, other) else torch.empty_like(weight).copy_(other)


def dense(tensor: Tensor) -> bool:
    """Whether a tensor has no gaps in memory, so that one made like it has its strides."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()
