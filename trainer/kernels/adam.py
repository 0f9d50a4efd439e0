"""Adam, AdamW, NAdam and NAdamW over many tensors at once in plain torch: the kernel's twin.

    g <- f g;   adam and nadam: g <- g + wd W, the others: W <- (1 - lr wd) W
    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
    adam    W <- W - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    nadam   u_t = b1 (1 - 0.96^(t psi) / 2);   P <- P u_t
            W <- W - lr (u_(t+1) m / (1 - P u_(t+1)) + (1 - u_t) g / (1 - P))
                      / (sqrt(v / (1 - b2^t)) + eps)

f is the factor that clips the gradient; folded in, it costs no write to the gradients. t and P lie
on the device, for each weight its own. Kept readable: it moves three times the bytes of the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.kernels.operands import Numbers, Operands, Rule


def adam_step_torch(
    rule: Rule, operands: Operands, numbers: Numbers, clip_factor: Tensor | None = None
) -> None:
    """Update weights, moments, step counts and products in place.

    Args:
        rule: adam, adamw, nadam or nadamw.
        operands: the two states are m and v, the scalars of the nadams P.
        numbers: shared by all weights.
        clip_factor: scalar on the device that multiplies every gradient; None is 1.
    """
    weights, (means, squares) = operands.weights, operands.states
    gradients = clipped(operands.gradients, clip_factor)
    if rule in {"adam", "nadam"}:
        gradients = list(torch._foreach_add(gradients, weights, alpha=numbers.weight_decay))
    else:
        torch._foreach_mul_(weights, 1 - numbers.lr * numbers.weight_decay)
    torch._foreach_lerp_(means, gradients, 1 - numbers.beta1)
    torch._foreach_mul_(squares, numbers.beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - numbers.beta2)
    torch._foreach_add_(list(operands.steps), 1)
    steps = torch.stack(list(operands.steps)).double()
    roots = torch._foreach_sqrt(squares)
    torch._foreach_mul_(roots, (1 - numbers.beta2**steps).rsqrt().unbind())
    torch._foreach_add_(roots, numbers.eps)
    if rule in {"nadam", "nadamw"}:
        of_mean, of_gradient = _nadam_scales(steps, operands.scalars, numbers)
        moves = list(torch._foreach_mul(means, of_mean.unbind()))
        torch._foreach_add_(moves, torch._foreach_mul(gradients, of_gradient.unbind()))
    else:
        moves = list(torch._foreach_mul(means, (1 / (1 - numbers.beta1**steps)).unbind()))
    torch._foreach_div_(moves, roots)
    torch._foreach_mul_(moves, numbers.lr)
    torch._foreach_sub_(weights, moves)


def clipped(gradients: list[Tensor], factor: Tensor | None) -> list[Tensor]:
    """Return the gradients times the factor, which may be None for 1; they are left alone."""
    return gradients if factor is None else list(torch._foreach_mul(gradients, factor))


def _nadam_scales(
    steps: Tensor, products: Sequence[Tensor], numbers: Numbers
) -> tuple[Tensor, Tensor]:
    """Advance the products; return what multiplies first moments and gradients, fp64 (weights,)."""
    now, later = (
        numbers.beta1 * (1 - 0.5 * 0.96 ** (t * numbers.momentum_decay)) for t in (steps, steps + 1)
    )
    torch._foreach_mul_(list(products), now.unbind())
    product = torch.stack(list(products)).double()
    return later / (1 - product * later), (1 - now) / (1 - product)
