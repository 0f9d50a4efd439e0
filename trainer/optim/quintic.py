# ruff: noqa: N803, N806 - tensor names end in their shape
"""The polar factor step by step, X <- (a I + b A + c A^2) X with A = X X^T, in bf16 on CUDA.

Both A and the polynomial are symmetric products. a I is part of the polynomial: added to the
product with X it would cost a copy of X a step, which at 768 rows takes half as long as the
product. In a simulation of bf16 both have the same distance from the exact factor, 1.0 to 1.3 %.

Shape suffixes: B matrices, M the shorter side, N the longer one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.kernels.symmetric import Choice, symmetric_product

SQUARES = 2
"""Tensors (B, M, M) that the steps work in."""


def quintic_form(
    x_BMN: Tensor,
    y_BMN: Tensor,
    squares_BMM: Sequence[Tensor],
    coefficients: Sequence[tuple[float, float, float]],
    backend: Choice = "auto",
) -> Tensor:
    """Apply the polynomials to the singular values, which lie in [0, 1].

    Args:
        x_BMN: matrices, wide or tall; overwritten.
        y_BMN: as ``x_BMN``; overwritten.
        squares_BMM: :data:`SQUARES` tensors; overwritten.
        coefficients: (a, b, c) of each step.
        backend: of the symmetric products.

    Returns:
        ``x_BMN`` or ``y_BMN``.
    """
    tall = x_BMN.shape[1] > x_BMN.shape[2]
    a_BMM, p_BMM = squares_BMM
    for a, b, c in coefficients:
        symmetric_product(x_BMN.mT if tall else x_BMN, out=a_BMM, backend=backend)
        symmetric_product(
            a_BMM, plus=a_BMM, alpha=c, beta=b, diagonal=a, out=p_BMM, backend=backend
        )
        left, right = (x_BMN, p_BMM) if tall else (p_BMM, x_BMN)
        torch.bmm(left, right, out=y_BMN)
        x_BMN, y_BMN = y_BMN, x_BMN
    return x_BMN
