# ruff: noqa: N803, N806 - tensor names end in their shape
"""Exact polar factors, by the singular value decomposition: what the polynomials come close to.

To see what the approximation changes, not to train with: on a CPU 1.6 to 3.2 times the polynomials'
time at 256 x 256 to 768 x 768, and on CUDA, where it was not timed, the host waits for it.

Shape suffixes: B matrices, M rows, N columns, K the shorter side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def exact_polar_factors(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return U V^T of each matrix U S V^T, in its dtype.

    Directions whose singular value is 0 to rounding are left out, so that a matrix of zeros has a
    factor of zeros. The factor of a matrix that is not finite is NaN.

    Raises:
        RuntimeError: a CUDA graph is captured.
    """
    factors = list(matrices)
    kinds: dict[tuple[torch.device, torch.dtype, torch.Size], list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        if matrix.numel():
            kinds[matrix.device, matrix.dtype, matrix.shape].append(i)
    for (device, dtype, _), members in kinds.items():
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "polar_method = svd makes the host wait for the device: its steps can't be "
                "captured in a CUDA graph; take polar_express"
            )
        x_BMN = torch.stack([matrices[i] for i in members])
        x_BMN = x_BMN.to(torch.promote_types(dtype, torch.float32))
        for i, factor in zip(members, _factors(x_BMN).to(dtype).unbind(), strict=True):
            factors[i] = factor
    return factors


def _factors(x_BMN: Tensor) -> Tensor:
    finite_B11 = x_BMN.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    u_BMK, s_BK, v_BKN = torch.linalg.svd(x_BMN.where(finite_B11, 0.0), full_matrices=False)
    longest = max(x_BMN.shape[-2:])
    least_B1 = longest * torch.finfo(x_BMN.dtype).eps * s_BK.amax(-1, keepdim=True)
    kept_BMK = u_BMK * (s_BK > least_B1).to(u_BMK)[:, None]
    return torch.bmm(kept_BMK, v_BKN).where(finite_B11, torch.nan)
