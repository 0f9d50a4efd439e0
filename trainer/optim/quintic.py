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

from trainer.kernels.symmetric import Choice, symmetric_product, uses_triton

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
    wide_BMN = x_BMN.mT if tall else x_BMN
    if not any(uses_triton(wide_BMN, has_plus=plus, backend=backend) for plus in (False, True)):
        return _by_torch(x_BMN, y_BMN, a_BMM, p_BMM, coefficients)
    for a, b, c in coefficients:
        symmetric_product(x_BMN.mT if tall else x_BMN, out=a_BMM, backend=backend)
        symmetric_product(
            a_BMM, plus=a_BMM, alpha=c, beta=b, diagonal=a, out=p_BMM, backend=backend
        )
        left, right = (x_BMN, p_BMM) if tall else (p_BMM, x_BMN)
        torch.bmm(left, right, out=y_BMN)
        x_BMN, y_BMN = y_BMN, x_BMN
    return x_BMN


def _by_torch(
    x_BMN: Tensor,
    y_BMN: Tensor,
    a_BMM: Tensor,
    p_BMM: Tensor,
    coefficients: Sequence[tuple[float, float, float]],
) -> Tensor:
    """As above by whole products; what small ones take is the host's time, so views are made once.

    Four calls a step.
    """
    tall = x_BMN.shape[1] > x_BMN.shape[2]
    diagonal_BM = p_BMM.diagonal(dim1=-2, dim2=-1)
    # What the square and the last product multiply, and where the latter goes.
    turns = [
        (*((x.mT, x) if tall else (x, x.mT)), *((x, p_BMM) if tall else (p_BMM, x)), y)
        for x, y in ((x_BMN, y_BMN), (y_BMN, x_BMN))
    ]
    for step, (a, b, c) in enumerate(coefficients):
        first, second, left, right, out_BMN = turns[step % 2]
        torch.bmm(first, second, out=a_BMM)
        torch.baddbmm(a_BMM, a_BMM, a_BMM, beta=b, alpha=c, out=p_BMM)
        diagonal_BM.add_(a)
        torch.bmm(left, right, out=out_BMN)
    return y_BMN if len(coefficients) % 2 else x_BMN
