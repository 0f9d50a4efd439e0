"""What optimizers keep for their weights from step to step, one tensor for each."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.optim.scaling import Number, each

State = MutableMapping[Tensor, Any]


def kept(
    state: State, key: str, weights: Sequence[Tensor], firsts: Sequence[Tensor], *, from_zero: bool
) -> list[Tensor]:
    """Return what is kept under ``key``, which starts at a copy of its first, or at zeros."""
    for weight, first in zip(weights, firsts, strict=True):
        if key not in state[weight]:
            # Kernels walk a state in its weight's order in memory.
            like = weight if weight.shape == first.shape else first
            start = torch.zeros_like(like, dtype=first.dtype)
            state[weight][key] = start if from_zero else start.copy_(first)
    return [state[weight][key] for weight in weights]


def kept_scalars(
    state: State, key: str, weights: Sequence[Tensor], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Return the numbers kept under ``key``, on the weights' device, which start at zero."""
    for weight in weights:
        if key not in state[weight]:
            state[weight][key] = torch.zeros((), dtype=dtype, device=weight.device)
    return [state[weight][key] for weight in weights]


def averaged(
    state: State,
    key: str,
    weights: Sequence[Tensor],
    values: Sequence[Tensor],
    decay: float,
    *,
    from_zero: bool = False,
) -> list[Tensor]:
    """Move the exponential averages kept under ``key`` towards ``values`` and return them.

    They start at their first values, or at zero where the caller corrects the bias.
    """
    averages = kept(state, key, weights, values, from_zero=from_zero)
    torch._foreach_lerp_(averages, list(values), 1 - decay)
    return averages


def unbiased_roots(squares: list[Tensor], beta: float, step: Number, eps: float) -> list[Tensor]:
    """Return sqrt(v / (1 - beta^step)) + eps of averages that started at zero.

    Args:
        squares: the averages v, which are left alone.
        beta: their decay.
        step: how often they moved, all alike or each.
        eps: added to the roots.
    """
    roots = list(torch._foreach_sqrt(squares))
    torch._foreach_mul_(roots, each((1 - beta**step) ** -0.5, roots))
    torch._foreach_add_(roots, eps)
    return roots


def restored(value: Any, weight: Tensor, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    """Return a copy of what was saved for a weight, in a type that need not be the weight's.

    Args:
        value: a tensor on any device, or a number.
        weight: whose it is.
        dtype: None is the weight's, but at least fp32.
        device: to put it on.
    """
    wide = torch.promote_types(weight.dtype, torch.float32) if dtype is None else dtype
    return torch.as_tensor(value).to(device, wide, copy=True)
