# ruff: noqa: N803, N806 - tensor names end in their shape
"""Inverses of symmetric positive semi-definite matrices, batched, without host synchronisation.

Two iterations, :func:`newton_pinv` (Soderstrom and Stewart 1974) and :func:`chebyshev_pinv`, and
the power method; Cholesky has a module of its own. The iterations stop for each matrix of a
batch by its own rule; a matrix that has stopped is carried along unchanged.

Shape suffixes: B matrices, N their size, M rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

POWER_TOLERANCE = 1e-6
"""The power method stops when its unit vector moves by less."""

CHEBYSHEV_MARGIN = 1.2
"""The power method's estimate is from below; this times it bounds the largest eigenvalue."""

CHEBYSHEV_TOLERANCE = 1e-6
"""The Chebyshev-scaled iteration stops when it inverts the smallest wanted eigenvalue this well."""


def largest_eigenvalue(c_BNN: Tensor, steps: int) -> Tensor:
    """Return each symmetric matrix's largest eigenvalue (B,), by at most ``steps`` products."""
    batch, size = c_BNN.shape[0], c_BNN.shape[-1]
    # Irregular enough to be orthogonal to nothing, the same in every run, and made on the device:
    # a copy from the host would wait for it.
    start_N = torch.arange(1, size + 1, dtype=torch.float64, device=c_BNN.device).sqrt().mul(97)
    v_BN1 = _unit(start_N.sin_().to(c_BNN.dtype)[:, None].expand(batch, size, 1))
    moving_B11 = torch.ones(batch, 1, 1, dtype=torch.bool, device=c_BNN.device)
    for _ in range(steps):
        next_BN1 = _unit(torch.bmm(c_BNN, v_BN1))
        moved_B11 = torch.linalg.vector_norm(next_BN1 - v_BN1, dim=(-2, -1), keepdim=True)
        v_BN1 = torch.where(moving_B11, next_BN1, v_BN1)
        moving_B11 = moving_B11 & (moved_B11 >= POWER_TOLERANCE)
        if _all_stopped(moving_B11):
            break
    return torch.bmm(v_BN1.mT, torch.bmm(c_BNN, v_BN1)).flatten()


def largest_singular_value(o_BMN: Tensor, steps: int) -> Tensor:
    """Return the largest singular value (B,) of each matrix, by the power method on its square."""
    short_BMN = o_BMN if o_BMN.shape[-2] <= o_BMN.shape[-1] else o_BMN.mT
    return largest_eigenvalue(torch.bmm(short_BMN, short_BMN.mT), steps).clamp_min(0).sqrt()


def newton_pinv(c_BNN: Tensor, rcond: float, steps: int) -> Tensor:
    """Return the pseudo-inverse of each C, its eigenvalues below about rcond * largest cut off.

    X <- (2 I - X C) X from a multiple of C^T inverts the eigenvalues one after the other, the
    large ones first, and tr(X C) counts them. Whenever the count passes a whole number, the size of
    the step tells the next eigenvalue in line; the iteration ends when that is below the cut.
    4 n^3 FLOPs a step.
    """
    cut_B = rcond * largest_eigenvalue(c_BNN, steps)
    tiny = torch.finfo(c_BNN.dtype).tiny
    magnitudes_BNN = c_BNN.abs()
    bound_B = magnitudes_BNN.sum(-2).amax(-1) * magnitudes_BNN.sum(-1).amax(-1)
    alpha_B = 1 / bound_B.clamp_min(tiny)
    x_BNN = alpha_B[:, None, None] * c_BNN.mT
    count_B = torch.zeros_like(alpha_B)
    moving_B = torch.ones_like(alpha_B, dtype=torch.bool)
    for step in range(steps):
        xc_BNN = torch.bmm(x_BNN, c_BNN)
        next_BNN = torch.baddbmm(x_BNN, xc_BNN, x_BNN, beta=2, alpha=-1)
        reached_B = xc_BNN.diagonal(dim1=-2, dim2=-1).sum(-1).floor()
        length_B = torch.linalg.vector_norm(next_BNN - x_BNN, dim=(-2, -1))
        next_in_line_B = length_B / (alpha_B * 2.0**step)
        moving_B = moving_B & ~((reached_B > count_B) & (next_in_line_B <= cut_B))
        count_B = reached_B
        x_BNN = torch.where(moving_B[:, None, None], next_BNN, x_BNN)
        if _all_stopped(moving_B):
            break
    return x_BNN


def chebyshev_pinv(c_BNN: Tensor, add: float | None, rcond: float, steps: int) -> Tensor:
    """Return (C + add I)^-1, or with ``add`` None an inverse of C accurate above the cut.

    With ``add`` the start is the Chebyshev polynomial of degree 1 on [rcond, 1] times the bound of
    the spectrum; without it a multiple of C, so that eigenvalues far below the cut stay small. Each
    step is scaled so that the spectrum of A Y lies around 1 as tightly as it can. How many steps
    that takes depends on rcond alone. 4 n^3 FLOPs a step.
    """
    bound_B11 = CHEBYSHEV_MARGIN * largest_eigenvalue(c_BNN, steps)[:, None, None]
    bound_B11 = bound_B11.clamp_min(torch.finfo(c_BNN.dtype).tiny)
    a_BNN = c_BNN / bound_B11
    if add:
        added_B1 = (add / bound_B11).flatten(1)
        a_BNN.diagonal(dim1=-2, dim2=-1).add_(added_B1)
    low = rcond / CHEBYSHEV_MARGIN
    if add is None:
        spread, smallest = (1 - low**2) / (1 + low**2), 2 * low**2 / (1 + low**2)
        y_BNN = a_BNN * (2 / (1 + low**2))
    else:
        scale = 8 / (1 + 6 * low + low**2)
        spread, smallest = (1 - low) ** 2 * scale / 8, low * scale
        y_BNN = -scale * a_BNN
        y_BNN.diagonal(dim1=-2, dim2=-1).add_(scale * (1 + low))
    for _ in range(steps):
        factor = 2 / (2 - spread**2)
        ay_BNN = torch.bmm(a_BNN, y_BNN)
        y_BNN = torch.baddbmm(y_BNN, y_BNN, ay_BNN, beta=2 * factor, alpha=-factor)
        spread = spread**2 / (2 - spread**2)
        smallest = factor * smallest * (2 - smallest)
        if abs(1 - smallest) < CHEBYSHEV_TOLERANCE:
            break
    return y_BNN / bound_B11


def _unit(v_BN1: Tensor) -> Tensor:
    length_B11 = torch.linalg.vector_norm(v_BN1, dim=(-2, -1), keepdim=True)
    unit_BN1: Tensor = v_BN1 / length_B11.clamp_min(torch.finfo(v_BN1.dtype).tiny)
    return unit_BN1


def _all_stopped(moving: Tensor) -> bool:
    """Look whether the loop may end early, where looking is free: not on an accelerator."""
    return moving.device.type == "cpu" and not bool(moving.any())
