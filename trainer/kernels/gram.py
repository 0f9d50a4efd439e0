# ruff: noqa: N803, N806 - tensor names end in their shape
"""X^T X by symmetric products: few tiles, each a long sum, so that parts of it fill the device.

Shape suffixes: R rows, N columns, S parts.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

_PARTS: dict[int, int] = {}
"""For sides up to the key: how many parts make Triton faster than cuBLAS from ``_LEAST_ROWS`` on;
0 where none do. :func:`trainer.kernels.gram_timing.measure` finds them; sides that are in no
entry's reach, which without measurements is all of them, are left to cuBLAS."""
_LEAST_ROWS = 8192
_PART_MULTIPLE = 64
"""Rows of a part are a multiple of this, so that only the last has a loop's end to look out for."""
_ALIGNMENT = 16
"""Bytes that rows must begin at a multiple of to be read without detours through registers."""


def gram_by_parts(x_RN: Tensor, parts: int) -> Tensor:
    """Return X^T X in fp32 (N, N), by the Triton kernel.

    Args:
        x_RN: bf16, fp16 or fp32 on CUDA, with at least one row.
        parts: that the rows are summed in at the same time; fewer where there are fewer rows.
    """
    from trainer.kernels.symmetric_triton import gram_parts_triton

    rows, size = x_RN.shape
    part = -(-rows // (parts * _PART_MULTIPLE)) * _PART_MULTIPLE
    sums_SNN = torch.empty(-(-rows // part), size, size, device=x_RN.device)
    gram_parts_triton(x_RN, sums_SNN, part)
    return sums_SNN[0] if len(sums_SNN) == 1 else sums_SNN.sum(0)


def parts_of(x_RN: Tensor) -> int:
    """Return the parts that :func:`gram_by_parts` should take; 0 where cuBLAS is as fast."""
    rows, size = x_RN.shape
    if x_RN.device.type != "cuda" or x_RN.dtype not in {torch.bfloat16, torch.float16}:
        return 0
    if x_RN.stride(1) != 1 or x_RN.stride(0) * x_RN.itemsize % _ALIGNMENT:
        return 0
    found = next((parts for most, parts in sorted(_PARTS.items()) if size <= most), 0)
    if rows < _LEAST_ROWS or not found or importlib.util.find_spec("triton") is None:
        return 0
    return found
