"""Arithmetic over lists of tensors with numbers that may lie on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Number = float | Tensor
"""On the host; or on the device, then a scalar, or one number for each tensor of a list."""


def each(number: Number, like: list[Tensor]) -> Any:
    """Return what torch's foreach functions take for the second factor of such tensors."""
    if not isinstance(number, Tensor):
        return number
    number = number.to(torch.promote_types(like[0].dtype, torch.float32))
    return list(number.unbind()) if number.ndim else number


def add_scaled(sums: list[Tensor], terms: list[Tensor], factor: Number) -> None:
    """Add the terms times the factor in place; one copy of them where it is on the device."""
    if isinstance(factor, Tensor):
        torch._foreach_add_(sums, torch._foreach_mul(terms, each(factor, terms)))
    else:
        torch._foreach_add_(sums, terms, alpha=factor)


def move_towards(averages: list[Tensor], values: list[Tensor], share: Number) -> None:
    """Move by a share of the difference in place; one copy where it is on the device."""
    if isinstance(share, Tensor):
        add_scaled(averages, list(torch._foreach_sub(values, averages)), share)
    else:
        torch._foreach_lerp_(averages, values, share)


def decay_weights(weights: list[Tensor], lr: Number, weight_decay: float) -> None:
    """Multiply by 1 - lr * weight_decay in place."""
    if weight_decay:
        torch._foreach_mul_(weights, each(1 - lr * weight_decay, weights))
