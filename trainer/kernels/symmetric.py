# ruff: noqa: N803, N806 - tensor names end in their shape
"""Batched symmetric products: the torch step, and the choice between it and Triton.

Shape suffixes: B matrices, M rows, N columns.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch
from torch import Tensor

from trainer.kernels.panels import symmetric_panels

Choice = Literal["auto", "torch", "triton"]

_TRITON_LEAST_SIDE = {torch.bfloat16: 512, torch.float16: 512}
"""Shorter sides are left to cuBLAS; so is fp32, whose products the tensor cores cannot take."""
_TRITON_LEAST_NUMBERS = {512: 1 << 22, 1024: 1 << 22, 2048: 1 << 23, 4096: 1 << 24}
"""For sides up to the key: from how many numbers of the result, B M^2, Triton is the faster one.
A single matrix up to 2048 is not worth a triangular grid; from 4096 on it is."""

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
    if backend == "triton" or (backend == "auto" and _triton_is_faster(x_BMN)):
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


def _triton_is_faster(x_BMN: Tensor) -> bool:
    batch, side, _ = x_BMN.shape
    if any(stride * x_BMN.itemsize % _ALIGNMENT and stride != 1 for stride in x_BMN.stride()):
        return False
    if x_BMN.device.type != "cuda" or x_BMN.dtype not in _TRITON_LEAST_SIDE:
        return False
    if side < _TRITON_LEAST_SIDE[x_BMN.dtype] or importlib.util.find_spec("triton") is None:
        return False
    numbers = [least for most, least in _TRITON_LEAST_NUMBERS.items() if side <= most]
    return batch * side * side >= (numbers[0] if numbers else 0)
