# ruff: noqa: N803, N806 - tensor names end in their shape
"""M (C + add I)^-1 by Cholesky, batched, without host synchronisation.

LAPACK's triangular solves are what a CPU does best. CUDA's batched ones use a fraction of the
device, and so does factoring the matrices of a batch one after the other; there the factor's
inverse is built from blocks, nearly all of it in batched products. The blocks on the diagonal are
the library's or a kernel's.

Shape suffixes: K matrices, N their size, B those of them that are solved with, M rows of what is
solved for. Of C only the lower triangles are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from trainer.kernels.backend import launch_fault

BLOCK = 256
"""Size up to which :func:`inverse_factor` leaves a matrix to the library: as fast on an H100 as
128, for half as many calls."""

Way = Literal["solve", "blocks", "triton"]

_CUDA_WAY: Way = "blocks"


class DampedInverse:
    """(C + add I)^-1 as a factor, for any number of right-hand sides."""

    def __init__(self, c_KNN: Tensor, add: float, way: Way | None = None) -> None:
        """Factor; C is damped in place.

        Args:
            c_KNN: positive semi-definite.
            add: raised to one rounding error of the trace where it is smaller, so that the
                factorisation of a singular C does not break down.
            way: ``solve`` costs N^3/3 + 2 M N^2 FLOPs a matrix in triangular solves, ``blocks``
                4/3 N^3 + 2 M N^2 + 2 min(M, N) N^2 in products; ``triton`` is the same with the
                kernel's blocks, for fp32 on CUDA. None takes what suits the device.
        """
        self._way: Way = way or (_CUDA_WAY if c_KNN.is_cuda else "solve")
        if way is None and self._way == "triton" and not _suits_kernel(c_KNN):
            self._way = "blocks"
        diagonal_KN = c_KNN.diagonal(dim1=-2, dim2=-1)
        trace_K1 = diagonal_KN.sum(-1, keepdim=True)
        diagonal_KN.add_((torch.finfo(c_KNN.dtype).eps * trace_K1).clamp_min(add))
        if self._way == "solve":
            self._factor_KNN = _factor(c_KNN)
        else:
            self._factor_KNN = inverse_factor(c_KNN, by_kernel=self._way == "triton")

    def applied(self, m_BMN: Tensor, which: slice = slice(None)) -> Tensor:
        """Return M (C + add I)^-1 for the matrices ``which``."""
        factor_BNN = self._factor_KNN[which]
        if self._way == "solve":
            return torch.cholesky_solve(m_BMN.mT, factor_BNN).mT
        if m_BMN.shape[-2] > m_BMN.shape[-1]:
            return torch.bmm(m_BMN, torch.bmm(factor_BNN.mT, factor_BNN))
        return torch.bmm(torch.bmm(m_BMN, factor_BNN.mT), factor_BNN)


def inverse_factor(c_KNN: Tensor, *, by_kernel: bool = False) -> Tensor:
    """Return the inverse of each C's lower Cholesky factor, lower triangular; C is overwritten.

    By halves: from A = L L^T and the inverse of L the block below gives its part of the factor,
    and what is left of the last quarter is factored in turn. 4/3 N^3 FLOPs in products.
    """
    inverse_KNN = torch.zeros_like(c_KNN)
    if by_kernel:
        from trainer.kernels.cholesky_triton import LARGEST, inverse_factor_triton

        _fill_inverse_factor(c_KNN, inverse_KNN, LARGEST, inverse_factor_triton)
    else:
        _fill_inverse_factor(c_KNN, inverse_KNN, BLOCK, _invert_by_library)
    return inverse_KNN


def _invert_by_library(c_KNN: Tensor, inverse_KNN: Tensor) -> None:
    eye_NN = torch.eye(c_KNN.shape[-1], dtype=c_KNN.dtype, device=c_KNN.device)
    inverse_KNN.copy_(torch.linalg.solve_triangular(_factor(c_KNN), eye_NN, upper=False))


def _fill_inverse_factor(
    c_KNN: Tensor, inverse_KNN: Tensor, block: int, invert: Callable[[Tensor, Tensor], None]
) -> None:
    size = c_KNN.shape[-1]
    if size <= block:
        invert(c_KNN, inverse_KNN)
        return
    cut = block * -(-size // (2 * block))
    c_first, c_below, c_rest = _lower_blocks(c_KNN, cut)
    first, below_first, rest = _lower_blocks(inverse_KNN, cut)
    _fill_inverse_factor(c_first, first, block, invert)
    below = torch.bmm(c_below, first.mT)
    c_rest.baddbmm_(below, below.mT, alpha=-1)
    _fill_inverse_factor(c_rest, rest, block, invert)
    below_first.baddbmm_(rest, torch.bmm(below, first), beta=0, alpha=-1)


def _lower_blocks(x_KNN: Tensor, cut: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two blocks on the diagonal, and between them the one below it."""
    sizes = (cut, x_KNN.shape[-1] - cut)
    above, below = torch.split_with_sizes(x_KNN, sizes, dim=-2)
    left, right = torch.split_with_sizes(below, sizes, dim=-1)
    return above.narrow(-1, 0, cut), left, right


def _suits_kernel(c_KNN: Tensor) -> bool:
    return c_KNN.dtype == torch.float32 and launch_fault() is None


def _factor(c_KNN: Tensor) -> Tensor:
    # cholesky_ex does not look at its result, so the host does not wait for the device.
    factor_KNN: Tensor = torch.linalg.cholesky_ex(c_KNN)[0]
    return factor_KNN
