"""Steps that end where a model of the loss reaches its lower bound: the part all families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def closure_loss(closure: Callable[[], Any] | None, name: str) -> Any:
    """Return what the closure does, the loss that the gradients are of.

    Args:
        closure: may compute the gradients, or find them there.
        name: of the optimizer, for the message.

    Raises:
        RuntimeError: there is no closure, or it returns None.
    """
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
        if loss is not None:
            return loss
    raise RuntimeError(
        f"the step of {name} depends on the loss: call step(closure) with a function that returns "
        "the mean loss of the step's tokens, over all micro-batches and ranks"
    )


def truncated_step(gap: Tensor, slope: Tensor, limit: float) -> Tensor:
    """Return min(limit, max(gap, 0) / slope), a scalar on the device of its arguments.

    A model of the loss that lies ``gap`` above its lower bound and falls by ``slope`` for each unit
    of step gets there, and no further. Where it does not fall, the step is ``limit``. NaN where
    gap or slope is not finite, so that it cannot go unnoticed.
    """
    longest = torch.where(slope == 0, limit, gap.clamp(min=0) / slope).clamp(max=limit)
    return torch.where(gap.isfinite() & slope.isfinite(), longest, torch.nan)


def inner_products(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the inner product of each pair, a vector, summed in at least fp32."""
    products = torch._foreach_mul(list(left), list(right))
    wide = torch.promote_types(products[0].dtype, torch.float32)
    return torch.stack([product.sum(dtype=wide) for product in products])
