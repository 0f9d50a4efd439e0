"""AdamW (arXiv 1711.05101) over many tensors at once: the torch step, and the choice of backend.

    m <- b1 m + (1 - b1) f g        v <- b2 v + (1 - b2) (f g)^2
    W <- (1 - lr wd) W - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

f is the factor that clips the gradient; folded in, it costs no pass over the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.kernels.backend import Backend
from trainer.kernels.operands import AdamWScalars, Slot


def adamw_step(
    slots: Sequence[Slot],
    scalars: AdamWScalars,
    backend: Backend,
    clip_factor: Tensor | None = None,
) -> None:
    """Update weights and moments in place.

    Args:
        slots: on one device; with the triton backend in fp32.
        scalars: shared by all slots.
        backend: chosen by :func:`trainer.kernels.choose_backend`.
        clip_factor: fp32 scalar on the device that multiplies every gradient; None is 1.
            The gradients themselves are left alone.
    """
    if not slots:
        return
    if backend == "triton":
        from trainer.kernels.adamw_triton import adamw_step_triton

        adamw_step_triton(slots, scalars, clip_factor)
    else:
        _adamw_step_torch(slots, scalars, clip_factor)


def _adamw_step_torch(
    slots: Sequence[Slot], scalars: AdamWScalars, clip_factor: Tensor | None
) -> None:
    """The readable twin: about 80 bytes per weight on a GPU, where the kernel moves 28."""
    weights, gradients, means, squares = (list(column) for column in zip(*slots, strict=True))
    if clip_factor is not None:
        gradients = list(torch._foreach_mul(gradients, clip_factor))
    torch._foreach_lerp_(means, gradients, 1 - scalars.beta1)
    torch._foreach_mul_(squares, scalars.beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - scalars.beta2)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_mul_(roots, scalars.root_correction)
    torch._foreach_add_(roots, scalars.eps)
    torch._foreach_mul_(weights, 1 - scalars.lr * scalars.weight_decay)
    torch._foreach_addcdiv_(weights, means, roots, -scalars.step_size)
