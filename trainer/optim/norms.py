"""How the norms of single weights make the norm of all weights (arXiv 2510.09827).

With the dual norm d_p of each weight's momentum, D the dual norm of all momenta together, and a_p
the share of the step that goes to weight p:

    linf     D = sum d_p                                       a_p = 1
    l2       D = sqrt(sum d_p^2)                               a_p = d_p / D
    hybrid   D = sqrt(S^2 + sum of d_p^2 over the rest),       a_p = S / D on the matrices,
             S = sum of d_p over the matrices                        d_p / D on the rest
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

ProductNorm = Literal["linf", "l2", "hybrid"]


def product_norm(
    kind: ProductNorm, duals: Sequence[Tensor], spectral: Sequence[bool]
) -> tuple[Tensor, list[Tensor]]:
    """Return D, a scalar, and a_p D for each group of weights.

    Args:
        kind: one of the above.
        duals: d_p of the weights of each group, a vector.
        spectral: whether the group is of matrices.

    Returns:
        a_p D is a scalar where all weights of a group share it, else that group's very ``duals``.
    """
    if kind == "linf":
        total = torch.cat(list(duals)).sum()
        return total, [total] * len(duals)
    if kind == "l2":
        return torch.linalg.vector_norm(torch.cat(list(duals))), list(duals)
    flags = list(zip(duals, spectral, strict=True))
    zero = duals[0].new_zeros(1)
    matrices = torch.cat([zero, *(d for d, is_spectral in flags if is_spectral)]).sum()
    rest = torch.cat([zero, *(d for d, is_spectral in flags if not is_spectral)]).square().sum()
    total = (matrices.square() + rest).sqrt()
    return total, [matrices if is_spectral else d for d, is_spectral in flags]


def over(numerator: Tensor | float, denominator: Tensor) -> Tensor:
    """Return the quotient, but the numerator where the denominator is zero.

    A dual norm is zero where the momentum is, and then it does not matter what multiplies it.
    """
    return numerator / torch.where(denominator == 0, 1, denominator)
