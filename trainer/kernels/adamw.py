"""AdamW (arXiv 1711.05101) on tensors that belong to no optimizer of their own.

    m <- b1 m + (1 - b1) f g        v <- b2 v + (1 - b2) (f g)^2
    W <- (1 - lr wd) W - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

f is the factor that clips the gradient; folded in, it costs no pass over the gradients. The caller
counts t. A CUDA graph can capture the step after one like it, where lr and t are on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.kernels.adam import clipped
from trainer.kernels.backend import Backend
from trainer.kernels.chunks import laid_out_alike
from trainer.kernels.operands import AdamWScalars, Numbers, Operands, Slot
from trainer.kernels.plans import Plans


def adamw_step(
    slots: Sequence[Slot],
    scalars: AdamWScalars,
    backend: Backend,
    clip_factor: Tensor | None = None,
    plans: Plans | None = None,
) -> None:
    """Update weights and moments in place.

    Args:
        slots: on one device; with the triton backend in fp32.
        scalars: shared by all slots.
        backend: chosen by :func:`trainer.kernels.choose_backend`.
        clip_factor: fp32 scalar on the device that multiplies every gradient; None is 1.
            The gradients themselves are left alone.
        plans: the triton backend's for the same weights' steps; None makes one for this alone.

    Raises:
        RuntimeError: the step is captured, and none of so many weights was taken with ``plans``.
    """
    if not slots:
        return
    if backend == "triton":
        _adamw_step_triton(slots, scalars, clip_factor, plans or Plans())
    else:
        _adamw_step_torch(slots, scalars, clip_factor)


def _adamw_step_torch(
    slots: Sequence[Slot], scalars: AdamWScalars, clip_factor: Tensor | None
) -> None:
    weights, gradients, means, squares = (list(column) for column in zip(*slots, strict=True))
    gradients = clipped(gradients, clip_factor)
    torch._foreach_lerp_(means, gradients, 1 - scalars.beta1)
    torch._foreach_mul_(squares, scalars.beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - scalars.beta2)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_mul_(roots, _by_weight(scalars.root_correction))
    torch._foreach_add_(roots, scalars.eps)
    moves = torch._foreach_mul(means, _by_weight(scalars.lr * scalars.mean_correction))
    torch._foreach_mul_(weights, _by_weight(1 - scalars.lr * scalars.weight_decay))
    torch._foreach_addcdiv_(weights, moves, roots, -1)


def _by_weight(number: float | Tensor) -> Any:
    """Return what foreach takes as a factor of each weight."""
    return list(number.unbind()) if isinstance(number, Tensor) and number.ndim else number


def _adamw_step_triton(
    slots: Sequence[Slot], scalars: AdamWScalars, clip_factor: Tensor | None, plans: Plans
) -> None:
    from trainer.kernels.elementwise_triton import step_chunks

    columns = zip(*map(_laid_out_alike, slots), strict=True)
    weights, gradients, means, squares = (list(column) for column in columns)
    plan = plans.of(Operands(weights, gradients, (means, squares)))
    _write(plan.corrections[:, 0], scalars.mean_correction)
    _write(plan.corrections[:, 1], scalars.root_correction)
    numbers = Numbers(scalars.lr, scalars.weight_decay, scalars.beta1, scalars.beta2, scalars.eps)
    step_chunks("adamw", plan, plan.parts[0], numbers, clip_factor)


def _write(column: Tensor, number: float | Tensor) -> None:
    if isinstance(number, Tensor):
        column.copy_(number)
    else:
        column.fill_(number)


def _laid_out_alike(slot: Slot) -> Slot:
    """Return the slot with its gradient in the weight's order in memory, copied if it is not."""
    if laid_out_alike(slot.weight, slot.gradient):
        return slot
    return slot._replace(gradient=torch.empty_like(slot.weight).copy_(slot.gradient))
