"""Exponential averages that an optimizer keeps for its weights."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor


def averaged(
    state: MutableMapping[Tensor, Any],
    key: str,
    weights: Sequence[Tensor],
    values: Sequence[Tensor],
    decay: float,
    *,
    from_zero: bool = False,
) -> list[Tensor]:
    """Move the averages kept under ``key`` in each weight's state towards ``values``; return them.

    An average starts at its first value, or at zero where the caller corrects the bias.
    """
    for weight, value in zip(weights, values, strict=True):
        if key not in state[weight]:
            state[weight][key] = torch.zeros_like(value) if from_zero else value.clone()
    averages = [state[weight][key] for weight in weights]
    torch._foreach_lerp_(averages, list(values), 1 - decay)
    return averages
