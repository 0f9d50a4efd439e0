"""Steps that end where a model of the loss reaches its lower bound: the part all families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

_SHARED = "model"
"""Key of the state that belongs to no single weight."""


class Truncating:
    """An optimizer whose step may end before its learning rate does."""

    step_scale: Tensor | None = None
    """tau / lr of the last step that moved a weight, a scalar on the device.

    None before the first one, and where steps are not truncated. It is one tensor, which every
    step writes and every replay of a captured one: read it before the next.
    """

    def _keep_scale(self, scale: Tensor) -> None:
        held = self.step_scale
        if held is None or (held.device, held.dtype) != (scale.device, scale.dtype):
            self.step_scale = scale.clone()
        else:
            held.copy_(scale)


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


def kept_for_all(state: Any, key: str, first: Tensor) -> Tensor:
    """Return the number kept under ``key`` for all weights together, where ``first`` lies.

    It starts there. torch saves and loads such a state as it is: it may be elsewhere, or no tensor.

    Args:
        state: an optimizer's.
        key: of the number.
        first: a scalar in the type to keep it in.
    """
    shared: dict[str, Any] = state[_SHARED]
    value = shared.get(key)
    shared[key] = first.clone() if value is None else torch.as_tensor(value).to(first)
    return cast("Tensor", shared[key])


def average_loss(
    state: Any, loss: Any, like: Tensor, decay: float, *, from_zero: bool = False
) -> Tensor:
    """Advance the average of the losses and return it.

    In place, where a captured graph finds it at its next replay.

    Args:
        state: an optimizer's.
        loss: of this step, a number or a scalar anywhere.
        like: whose type and device the average has.
        decay: of the average.
        from_zero: whether it starts at zero, not at its first loss.
    """
    loss = torch.as_tensor(loss, dtype=like.dtype, device=like.device).detach()
    start = torch.zeros_like(loss) if from_zero else loss
    return kept_for_all(state, "loss_avg", start).lerp_(loss, 1 - decay)


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
