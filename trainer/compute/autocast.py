"""What autocast does to a tensor that meets an operation which it does not know."""

from __future__ import annotations

import torch


def autocast_dtype(tensor: torch.Tensor) -> torch.dtype | None:
    """Return in which type autocast has such a tensor multiplied; None where it leaves it alone.

    A tensor may be on a device that has no autocast, as ``meta``.
    """
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    is_cast = tensor.is_floating_point() and tensor.dtype != torch.float64
    return torch.get_autocast_dtype(device) if is_cast else None
