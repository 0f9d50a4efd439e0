# ruff: noqa: N803, N806 - tensor names end in their shape
"""The polar factor in the Gram form: a few steps on R = X X^T, then one product with X.

    R = X X^T,  Q = I;  each step  P = a I + b R + c R^2,  Q <- Q P,  R <- P R P;  then X <- Q X

All of these are polynomials in R: symmetric, and free to swap. So each (M, M) product costs half,
and of the products with X, two in five are left. R holds the squares of the singular values, whose
small ones fp32 loses; starting again from X after three steps brings them back.

For CPUs. In bf16 the form blows up.

Shape suffixes: B matrices, M the shorter side, N the longer one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.kernels.panels import symmetric_panels

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
    tall = x_BMN.shape[1] > x_BMN.shape[2]
    together = _steps_together(x_BMN.shape[1], x_BMN.shape[2])
    for first in range(0, len(coefficients), together):
        run = coefficients[first : first + together]
        q_BMM = _polynomial(x_BMN.mT if tall else x_BMN, squares_BMM, run)
        left, right = (x_BMN, q_BMM) if tall else (q_BMM, x_BMN)
        torch.bmm(left, right, out=y_BMN)
        x_BMN, y_BMN = y_BMN, x_BMN
    return x_BMN


def products_with_x(rows: int, columns: int, steps: int) -> int:
    """Return how many times matrices of this shape are multiplied by a polynomial."""
    return -(-steps // _steps_together(rows, columns))


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
