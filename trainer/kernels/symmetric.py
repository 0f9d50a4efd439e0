# ruff: noqa: N803, N806 - tensor names end in their shape
"""Batched symmetric products: the torch step, and the choice between it and Triton.

Shape suffixes: B matrices, M rows, N columns.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trainer.kernels.backend import launch_fault
from trainer.kernels.panels import symmetric_panels

Choice = Literal["auto", "torch", "triton"]

_HALF = (torch.bfloat16, torch.float16)
"""fp32 is left to cuBLAS: the tensor cores cannot take its products."""
_LEAST_SIDE = 512
"""Shorter sides are left to cuBLAS; the launches cost more than the products."""
_LEAST_BATCH = 6
_LONG_SIDE = 4096
"""From either on Triton is the faster one at x x^T; with ``plus`` it always is.

One H100 in bf16, Triton in units of cuBLAS's time, by the best tiling; in brackets with ``plus``,
M = N, by tiles of 128 alone:

    M              512          768          1024         1280         2048         4096
    B = 1          0.99 (0.78)  0.95 (0.77)  0.99 (0.75)  0.97 (0.70)  1.02 (0.81)  0.65 (0.58)
    B = 6                       0.88 (0.50)  0.82 (0.62)  0.87 (0.62)
    B = 12                      0.72 (0.57)
    B = 24                      0.92 (0.60)  0.93 (0.60)
    N = 2.7 M
    B = 1                       0.97         0.98         1.02
    B = 6                       0.69         0.78         0.78
    B = 12                      0.70
    B = 24                      0.84         0.81

A single matrix up to 2048 is a draw, and a launch of cuBLAS takes the host less. Between 1 and 6
matrices nothing was measured. :mod:`trainer.kernels.symmetric_timing` measures it again."""

_ALIGNMENT = 16
"""Bytes that rows must begin at a multiple of to be read without detours through registers."""


def symmetric_product(
    x_BMN: Tensor,
    *,
    plus: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    diagonal: float = 0.0,
    out: Tensor | None = None,
    backend: Choice = "auto",
) -> Tensor:
    """Return alpha x x^T + beta plus + diagonal I, each (B, M, M).

    Args:
        x_BMN: on a CPU fp32 or fp64; on CUDA bf16, fp16 or fp32, summed in fp32. x^T x is this of
            ``x.mT``, without a copy.
        plus: symmetric; may be ``out``, to accumulate.
        alpha: of x x^T.
        beta: of ``plus``; not read without it.
        diagonal: added to the diagonal.
        out: dense; of any dtype, such as fp32 for bf16 x. By default new and of x's dtype.
        backend: ``auto`` takes what is faster for this shape here.
    """
    batch, rows, _ = x_BMN.shape
    if out is None:
        out = x_BMN.new_empty(batch, rows, rows)
    if uses_triton(x_BMN, has_plus=plus is not None, backend=backend):
        from trainer.kernels.symmetric_triton import symmetric_product_triton

        symmetric_product_triton(x_BMN, plus, out, alpha, beta, diagonal)
        return out
    x_BMN = x_BMN.to(out.dtype)
    if backend == "auto" and out.device.type == "cpu":
        symmetric_panels(x_BMN, x_BMN.mT, out, plus, alpha, beta)
    else:
        _symmetric_product_torch(x_BMN, plus, alpha, beta, out)
    if diagonal:
        out.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    return out


def uses_triton(x_BMN: Tensor, *, has_plus: bool, backend: Choice) -> bool:
    """Whether :func:`symmetric_product` takes the kernel for this ``x_BMN``."""
    if backend == "auto":
        return _triton_is_faster(x_BMN, has_plus=has_plus)
    return backend == "triton"


def _symmetric_product_torch(
    x_BMN: Tensor, plus: Tensor | None, alpha: float, beta: float, out: Tensor
) -> None:
    """The readable twin: a whole product, 2 M^2 N FLOPs a matrix."""
    torch.baddbmm(
        out if plus is None else plus,
        x_BMN,
        x_BMN.mT,
        beta=0.0 if plus is None else beta,
        alpha=alpha,
        out=out,
    )


def _triton_is_faster(x_BMN: Tensor, *, has_plus: bool) -> bool:
    if x_BMN.device.type != "cuda" or x_BMN.dtype not in _HALF or launch_fault() is not None:
        return False
    batch, side, _ = x_BMN.shape
    if side < _LEAST_SIDE or not (has_plus or batch >= _LEAST_BATCH or side >= _LONG_SIDE):
        return False
    return all(
        stride == 1 or stride * x_BMN.itemsize % _ALIGNMENT == 0 for stride in x_BMN.stride()
    )
