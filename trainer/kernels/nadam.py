"""NAdam and NAdamW on a CPU, where torch has no fused step: :mod:`trainer.kernels.adam`'s formulas.

torch's own loop over the weights is what it should equal; that reads each number some fifteen
times.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import torch
from torch import Tensor

from trainer.kernels.adam import adam_step_torch, clipped
from trainer.kernels.bundles import Columns, can_bundle, step_in_bundles
from trainer.kernels.operands import Numbers, Operands, Rule


def nadam_step_cpu(
    rule: Rule, operands: Operands, numbers: Numbers, clip_factor: Tensor | None = None
) -> None:
    """As :func:`trainer.kernels.adam.adam_step_torch`, for nadam and nadamw."""
    columns = (operands.weights, operands.gradients, *operands.states)
    if not can_bundle(columns):
        adam_step_torch(rule, operands, numbers, clip_factor)
        return
    torch._foreach_add_(list(operands.steps), 1)
    batches: dict[tuple[float, float], list[int]] = defaultdict(list)
    for i, (step, product) in enumerate(zip(operands.steps, operands.scalars, strict=True)):
        t = float(step)
        product.mul_(_momentum(t, numbers))
        batches[t, float(product)].append(i)
    for (t, whole), indices in batches.items():
        move = partial(_move, rule, numbers, t, whole, clip_factor)
        step_in_bundles([[column[i] for i in indices] for column in columns], move)


def _momentum(t: float, numbers: Numbers) -> float:
    """Return u_t."""
    momentum: float = numbers.beta1 * (1 - 0.5 * 0.96 ** (t * numbers.momentum_decay))
    return momentum


def _move(
    rule: Rule,
    numbers: Numbers,
    t: float,
    product: float,
    clip_factor: Tensor | None,
    columns: Columns,
    _owners: list[int],
) -> None:
    weights, gradients, means, squares = columns
    lr = float(numbers.lr)
    now, later = _momentum(t, numbers), _momentum(t + 1, numbers)
    gradients = clipped(gradients, clip_factor)
    if rule == "nadamw":
        torch._foreach_mul_(weights, 1 - lr * numbers.weight_decay)
    elif numbers.weight_decay:
        gradients = list(torch._foreach_add(gradients, weights, alpha=numbers.weight_decay))
    torch._foreach_lerp_(means, gradients, 1 - numbers.beta1)
    torch._foreach_mul_(squares, numbers.beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - numbers.beta2)
    # One division of each number and one root: they take several times as long as products.
    roots = torch._foreach_sqrt(squares)
    torch._foreach_mul_(roots, (1 - numbers.beta2**t) ** -0.5)
    torch._foreach_add_(roots, numbers.eps)
    moves = torch._foreach_mul(means, later / (1 - product * later))
    torch._foreach_add_(moves, gradients, alpha=(1 - now) / (1 - product))
    torch._foreach_addcdiv_(weights, moves, roots, -lr)
