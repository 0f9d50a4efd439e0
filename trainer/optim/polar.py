# ruff: noqa: N803, N806 - tensor names end in their shape
"""The polar factor of matrices by odd polynomials: only matrix products, batched.

For G = U S V^T the polar factor is U V^T. Each step maps every singular value s to
a s + b s^3 + c s^5, which drives them towards 1.

Shape suffixes: B matrices, M rows, N columns.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from trainer.kernels.backend import has_bf16

Method = Literal["polar-express", "jordan", "jordan-torch", "svd"]

_JORDAN = (3.4445, -4.7750, 2.0315)
"""Jordan et al. 2024: the same polynomial at every step; ends near 1, not at it."""

_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""arXiv 2505.16932: the best polynomial for each step; the last one repeats."""

SAFETY = 1.01
"""Keeps singular values that rounding has pushed above 1 inside the polynomials' interval."""


@cache
def coefficients(
    method: Method, steps: int, gptopt_compat: bool = False
) -> tuple[tuple[float, float, float], ...]:
    """Return (a, b, c) for each step.

    Args:
        method: ``gptopt_compat`` and the safety factor concern polar-express only. jordan-torch is
            jordan with a first step that takes :func:`polar_factor`'s margin back, which
            torch.optim.Muon does not have.
        steps: how many.
        gptopt_compat: divide each polynomial by 1.01 once more.
    """
    if method == "jordan":
        return (_JORDAN,) * steps
    if method == "jordan-torch":
        a, b, c = _JORDAN
        return ((a * SAFETY, b * SAFETY**3, c * SAFETY**5), *(_JORDAN,) * (steps - 1))
    last = len(_POLAR_EXPRESS) - 1
    extra = SAFETY if gptopt_compat else 1.0
    chosen = []
    for step in range(steps):
        safety = 1.0 if step >= last else SAFETY
        a, b, c = _POLAR_EXPRESS[min(step, last)]
        chosen.append((a / safety / extra, b / safety**3 / extra, c / safety**5 / extra))
    return tuple(chosen)


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return what to multiply matrices of this dtype in.

    bf16 on CUDA, where the GPU has units for it: for older ones Triton can't even compile. On a CPU
    never: without bf16 units a 2048^3 product takes 51 s in bf16 and 0.14 s in fp32.
    """
    if device.type == "cuda" and has_bf16(device):
        return torch.bfloat16
    return torch.promote_types(dtype, torch.float32)


def least_norm(dtype: torch.dtype) -> float:
    """Return the least norm that is divided by: 1e-15 for fp32.

    Below it the squares that the norm is made of begin to vanish, and with them the bound on the
    singular values. Matrices that small keep a part of their size instead.
    """
    return math.sqrt(torch.finfo(dtype).tiny) * 1e4


def polar_factor(
    g_BMN: Tensor,
    method: Method = "polar-express",
    steps: int = 5,
    gptopt_compat: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Approximate the polar factor of each matrix; a zero matrix stays zero.

    Args:
        g_BMN: any float dtype; the norm is taken in at least fp32.
        method: the polynomials.
        steps: each costs 4 m^2 n + 2 m^3 FLOPs per matrix, m the shorter side.
        gptopt_compat: see :func:`coefficients`.
        dtype: of the products; by default :func:`product_dtype`'s.

    Returns:
        A new tensor (B, M, N) in the dtype of the products.
    """
    if g_BMN.shape[-2] > g_BMN.shape[-1]:
        return polar_factor(g_BMN.mT, method, steps, gptopt_compat, dtype).mT
    wide = g_BMN.to(torch.promote_types(g_BMN.dtype, torch.float32))
    norm_B11 = torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True)
    x_BMN: Tensor = wide / (SAFETY * norm_B11).clamp_min(least_norm(wide.dtype))
    x_BMN = x_BMN.to(dtype or product_dtype(g_BMN.device, g_BMN.dtype))
    for a, b, c in coefficients(method, steps, gptopt_compat):
        a_BMM = torch.bmm(x_BMN, x_BMN.mT)
        p_BMM = torch.baddbmm(a_BMM, a_BMM, a_BMM, beta=b, alpha=c)
        x_BMN = torch.baddbmm(x_BMN, p_BMM, x_BMN, beta=a)
    return x_BMN
