# ruff: noqa: N803, N806 - tensor names end in their shape
"""The polar factor on CPUs, mostly in the Gram form: steps on R = X X^T, then one product with X.

    R = X X^T,  Q = I;  each step  P = a I + b R + c R^2,  Q <- Q P,  R <- P R P;  then X <- Q X

All of these are polynomials in R: symmetric, and free to swap. So each (M, M) product costs half,
and of the products with X, two in five are left. R holds the squares of the singular values, whose
small ones fp32 loses; starting again from X after three steps brings them back.

In bf16 the form blows up. Where matrices are so small that operators cost more than what they
compute, the plain form X <- a X + (b A + c A^2) X with A = X X^T takes their place.

Shape suffixes: B matrices, M the shorter side, N the longer one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.kernels.panels import LEAST_SIDE, symmetric_panels

Coefficients = Sequence[tuple[float, float, float]]

SQUARES = 4
"""Tensors (B, M, M) that the form works in."""

_STEPS_TOGETHER = 3
"""Steps between two starts from X. Relative error of five Polar Express steps in fp32, 128 x 300,
condition number 1e4: 3e-5 in threes, 2e-5 in twos, 2e-4 when only the second step ends with a
start, 1e-3 without one; 8e-6 one by one, which is the plain form."""

_WIDE = 1.5
"""From this N / M on steps go together. With products at 5/8 of their cost, what five steps cost,
in M^3: 16.25 N/M + 6.25 one by one, 6.5 N/M + 17.5 in threes."""


_LEAST_WORK = 5e6
"""Products of numbers B M^2 N from which the form's operators pay, where steps go together: in us,
of five steps of one thread, plain and in this form: 1 x 64 x 170: 160, 278; 8 x 64 x 170: 987, 928;
1 x 128 x 341: 856, 828; 2 x 128 x 341: 1740, 1481."""


def gram_form(
    x_BMN: Tensor, y_BMN: Tensor, squares_BMM: Sequence[Tensor], coefficients: Coefficients
) -> Tensor:
    """Apply the polynomials to the singular values, which lie in [0, 1].

    Args:
        x_BMN: fp32 or fp64 matrices, wide or tall; overwritten.
        y_BMN: as ``x_BMN``; overwritten.
        squares_BMM: :data:`SQUARES` tensors; overwritten.
        coefficients: (a, b, c) of each step.

    Returns:
        ``x_BMN`` or ``y_BMN``: the latter if :func:`products_with_x` is odd.
    """
    if _is_small(*x_BMN.shape):
        return _plain_form(x_BMN, y_BMN, squares_BMM, coefficients)
    tall = x_BMN.shape[1] > x_BMN.shape[2]
    together = _steps_together(x_BMN.shape[1], x_BMN.shape[2])
    for first in range(0, len(coefficients), together):
        run = coefficients[first : first + together]
        q_BMM = _polynomial(x_BMN.mT if tall else x_BMN, squares_BMM, run)
        left, right = (x_BMN, q_BMM) if tall else (q_BMM, x_BMN)
        torch.bmm(left, right, out=y_BMN)
        x_BMN, y_BMN = y_BMN, x_BMN
    return x_BMN


def products_with_x(count: int, rows: int, columns: int, steps: int) -> int:
    """Return how many times a batch of this shape is multiplied by a polynomial."""
    together = 1 if _is_small(count, rows, columns) else _steps_together(rows, columns)
    return -(-steps // together)


def _is_small(count: int, rows: int, columns: int) -> bool:
    """Whether the plain form is quicker: it takes 3 operators a step and no panels."""
    side = min(rows, columns)
    if _steps_together(rows, columns) == 1:
        return side < LEAST_SIDE
    return count * side * rows * columns < _LEAST_WORK


def _plain_form(
    x_BMN: Tensor, y_BMN: Tensor, squares_BMM: Sequence[Tensor], coefficients: Coefficients
) -> Tensor:
    tall = x_BMN.shape[1] > x_BMN.shape[2]
    a_BMM, p_BMM, *_ = squares_BMM
    for a, b, c in coefficients:
        left, right = (x_BMN.mT, x_BMN) if tall else (x_BMN, x_BMN.mT)
        torch.bmm(left, right, out=a_BMM)
        torch.baddbmm(a_BMM, a_BMM, a_BMM, beta=b, alpha=c, out=p_BMM)
        left, right = (x_BMN, p_BMM) if tall else (p_BMM, x_BMN)
        torch.baddbmm(x_BMN, left, right, beta=a, out=y_BMN)
        x_BMN, y_BMN = y_BMN, x_BMN
    return x_BMN


def _steps_together(rows: int, columns: int) -> int:
    return _STEPS_TOGETHER if max(rows, columns) >= _WIDE * min(rows, columns) else 1


def _polynomial(x_BMN: Tensor, squares_BMM: Sequence[Tensor], run: Coefficients) -> Tensor:
    """Return the product of the P of each step: one of ``squares_BMM``."""
    r_BMM, p_BMM, q_BMM, t_BMM = squares_BMM
    symmetric_panels(x_BMN, x_BMN.mT, r_BMM)
    for step, (a, b, c) in enumerate(run):
        symmetric_panels(r_BMM, r_BMM, p_BMM, r_BMM, alpha=c, beta=b)
        p_BMM.diagonal(dim1=-2, dim2=-1).add_(a)
        if step:
            symmetric_panels(q_BMM, p_BMM, t_BMM)
            q_BMM, t_BMM = t_BMM, q_BMM
        if step < len(run) - 1:
            symmetric_panels(r_BMM, p_BMM, t_BMM)
            symmetric_panels(t_BMM, p_BMM, r_BMM)
        if not step:
            q_BMM, p_BMM = p_BMM, q_BMM
    return q_BMM
