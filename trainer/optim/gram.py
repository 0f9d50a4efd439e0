# ruff: noqa: N803, N806 - tensor names end in their shape
"""X^T X of a micro-batch's inputs, in at least fp32.

Only the lower triangle of what comes out counts: a symmetric matrix is not worth computing twice.

Shape suffixes: R rows, N inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.kernels.gram import gram_by_parts, split_of
from trainer.kernels.panels import symmetric_panels

_HAS_WIDE_SUM = torch.version.hip is None and tuple(
    int(part) for part in torch.__version__.split(".")[:2]
) >= (2, 8)
"""Whether a product of half-precision matrices can be had in fp32 as it was summed."""


@torch.no_grad()
def gram(x_RN: Tensor) -> Tensor:
    """Return X^T X (N, N) in fp32, or fp64 for fp64 inputs; the upper triangle is undefined.

    Little more than R N^2 FLOPs on a CPU and in Triton's kernel, twice that elsewhere.
    Half-precision inputs are widened on a CPU, where their products may be emulated; CUDA
    multiplies them as they are and sums in fp32.
    """
    wide = torch.promote_types(x_RN.dtype, torch.float32)
    with torch.autocast(x_RN.device.type, enabled=False):
        if x_RN.device.type == "cpu":
            x_1RN = x_RN.to(wide)[None]
            product_1NN = x_1RN.new_empty(1, *x_RN.shape[1:] * 2)
            return symmetric_panels(x_1RN.mT, x_1RN, product_1NN)[0]
        if x_RN.dtype == wide or not (_HAS_WIDE_SUM and x_RN.is_cuda and x_RN.shape[0]):
            x_RN = x_RN.to(wide)
            return torch.mm(x_RN.mT, x_RN)
        if split := split_of(x_RN):
            return gram_by_parts(x_RN, split.parts, split.tiling)
        product: Tensor = torch.mm(x_RN.mT, x_RN, out_dtype=wide)
        return product


def symmetric(c_KNN: Tensor) -> Tensor:
    """Return matrices whose upper triangles mirror the lower ones."""
    return c_KNN.tril() + c_KNN.tril(-1).mT
