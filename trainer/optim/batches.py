# ruff: noqa: N803, N806 - tensor names end in their shape
"""The polar factors of a model's matrices: batched by shape, in memory that is used again.

Shape suffixes: B matrices, M rows, N columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.kernels.symmetric import Choice
from trainer.kernels.threads import run_pieces
from trainer.optim import gram_form, quintic
from trainer.optim.gram_form import Coefficients
from trainer.optim.polar import SAFETY, Method, coefficients, least_norm, product_dtype
from trainer.optim.svd import exact_polar_factors

_WORKSPACE_BYTES = {"cpu": 2 << 20, "cuda": 256 << 20}
"""Matrices of one shape are worked on so many at a time that their workspace stays within this,
at least one. On a CPU it is a core's L2 cache: 36 matrices 64 x 170 are 1.5 times as fast as one
by one in eights, 1.3 times all at once."""

_PRODUCTS_PER_US = 75e3
"""Of fp32 numbers, one thread of a CPU with AVX-512; with AVX2 about half."""

_PADDED_TO = 64
"""On CUDA sides are padded with zeros to a multiple of this: rows of 2730 bf16 numbers would not
begin at multiples of 16 bytes. Zeros stay zero under the polynomials."""


class _Kind(NamedTuple):
    """What matrices of one batch have in common."""

    device: torch.device
    dtype: torch.dtype
    rows: int
    columns: int


class _Task(NamedTuple):
    """Matrices of one shape on a CPU, and where their factors go."""

    matrices: list[Tensor]
    factors_BMN: Tensor  # noqa: N815 - ends in its shape

    def chunks(self, threads: int) -> list[_Task]:
        """Cut the batch to the size of a core's cache, and into as many parts as threads."""
        count, rows, columns = self.factors_BMN.shape
        dtype = product_dtype(self.factors_BMN.device, self.factors_BMN.dtype)
        numbers = 2 * rows * columns + gram_form.SQUARES * min(rows, columns) ** 2
        chunk = min(_chunk(count, numbers * dtype.itemsize, "cpu"), -(-count // threads))
        starts = range(0, count, chunk)
        return [
            _Task(self.matrices[start : start + chunk], self.factors_BMN[start : start + chunk])
            for start in starts
        ]

    def cost(self, steps: int) -> float:
        """Return about what it takes, in microseconds of one thread."""
        count, rows, columns = self.factors_BMN.shape
        side = min(rows, columns)
        products = count * side**2 * (3 * max(rows, columns) + steps * side)
        return products / _PRODUCTS_PER_US


@torch.no_grad()
def polar_factors(
    matrices: Sequence[Tensor],
    method: Method,
    steps: int,
    gptopt_compat: bool,
    backend: Choice = "auto",
) -> list[Tensor]:
    """Return the polar factor of each matrix, in its dtype; as ``polar.polar_factor`` to rounding.

    But for svd, nothing waits for the device, and all memory comes from torch's allocator: a CUDA
    graph can capture the call.

    Args:
        matrices: of any shapes, dtypes and devices; not changed.
        method: the polynomials.
        steps: how many of them.
        gptopt_compat: see :func:`trainer.optim.polar.coefficients`.
        backend: of the symmetric products on CUDA.
    """
    if method == "svd":
        return exact_polar_factors(matrices)
    kinds = _kinds(tuple([(each.device, each.dtype, each.shape) for each in matrices]))
    polynomials = coefficients(method, steps, gptopt_compat)
    factors = list(matrices)
    on_cpu: list[_Task] = []
    for kind, indices in kinds:
        members = [matrices[i] for i in indices]
        factors_BMN = torch.empty(
            len(members), kind.rows, kind.columns, dtype=kind.dtype, device=kind.device
        )
        if kind.device.type == "cuda":
            _write_on_cuda(members, factors_BMN, polynomials, backend)
        else:
            on_cpu.append(_Task(members, factors_BMN))
        for i, factor in zip(indices, factors_BMN.unbind(), strict=True):
            factors[i] = factor
    if on_cpu:
        _write_on_cpu(on_cpu, polynomials)
    return factors


@lru_cache(maxsize=16)
def _kinds(
    matrices: tuple[tuple[torch.device, torch.dtype, torch.Size], ...],
) -> tuple[tuple[_Kind, tuple[int, ...]], ...]:
    """Return which matrices that are not empty make one batch; steps ask for the same each time."""
    kinds: dict[_Kind, list[int]] = defaultdict(list)
    for i, (device, dtype, (rows, columns)) in enumerate(matrices):
        if rows * columns:
            kinds[_Kind(device, dtype, rows, columns)].append(i)
    return tuple((kind, tuple(indices)) for kind, indices in kinds.items())


def _write_on_cpu(tasks: list[_Task], polynomials: Coefficients) -> None:
    """Share the chunks of all tasks out among the threads."""
    threads = torch.get_num_threads()
    chunks = [chunk for task in tasks for chunk in task.chunks(threads)]
    costs = [chunk.cost(len(polynomials)) for chunk in chunks]
    run_pieces([partial(_write_chunk, chunk, polynomials) for chunk in chunks], costs)


def _write_chunk(task: _Task, polynomials: Coefficients) -> None:
    """Work in the factors' own memory and one more tensor, so that the last product ends there."""
    factors_BMN = task.factors_BMN
    count, rows, columns = factors_BMN.shape
    dtype = product_dtype(factors_BMN.device, factors_BMN.dtype)
    side = min(rows, columns)
    y_BMN = factors_BMN.new_empty(count, rows, columns, dtype=dtype)
    squares_BMM = [y_BMN.new_empty(count, side, side) for _ in range(gram_form.SQUARES)]
    wanted_BMN = factors_BMN if factors_BMN.dtype == dtype else torch.empty_like(y_BMN)
    odd = gram_form.products_with_x(count, rows, columns, len(polynomials)) % 2
    x_BMN, other_BMN = (y_BMN, wanted_BMN) if odd else (wanted_BMN, y_BMN)
    torch._foreach_copy_(list(x_BMN.unbind()), task.matrices)
    _scale(x_BMN)
    gram_form.gram_form(x_BMN, other_BMN, squares_BMM, polynomials)
    if wanted_BMN is not factors_BMN:
        factors_BMN.copy_(wanted_BMN)


def _write_on_cuda(
    matrices: list[Tensor], factors_BMN: Tensor, polynomials: Coefficients, backend: Choice
) -> None:
    count, rows, columns = factors_BMN.shape
    device, dtype = factors_BMN.device, product_dtype(factors_BMN.device, factors_BMN.dtype)
    padded = tuple(-(-side // _PADDED_TO) * _PADDED_TO for side in (rows, columns))
    side = min(padded)
    numbers = 2 * padded[0] * padded[1] + quintic.SQUARES * side * side
    chunk = _chunk(count, numbers * dtype.itemsize, "cuda")
    x_BMN = torch.empty(chunk, *padded, dtype=dtype, device=device)
    y_BMN = torch.empty_like(x_BMN)
    squares_BMM = [x_BMN.new_empty(chunk, side, side) for _ in range(quintic.SQUARES)]
    for start in range(0, count, chunk):
        now = min(chunk, count - start)
        # Each time: a matrix that is not finite leaves no zeros here.
        if padded[0] != rows:
            x_BMN[:now, rows:].zero_()
        if padded[1] != columns:
            x_BMN[:now, :, columns:].zero_()
        inner_BMN = x_BMN[:now, :rows, :columns]
        torch._foreach_copy_(list(inner_BMN.unbind()), matrices[start : start + now])
        _scale(x_BMN[:now])
        result_BMN = quintic.quintic_form(
            x_BMN[:now], y_BMN[:now], [each[:now] for each in squares_BMM], polynomials, backend
        )
        factors_BMN[start : start + now].copy_(result_BMN[:, :rows, :columns])


def _scale(x_BMN: Tensor) -> None:
    """Bring all singular values to at most 1; zeros stay zero."""
    wide = torch.promote_types(x_BMN.dtype, torch.float32)
    norm_B11 = torch.linalg.vector_norm(x_BMN, dim=(-2, -1), keepdim=True, dtype=wide)
    x_BMN.div_(norm_B11.mul_(SAFETY).clamp_min_(least_norm(wide)))


def _chunk(count: int, matrix_bytes: int, device: str) -> int:
    """Return how many matrices to work on at a time, so that all times have about as many."""
    most = max(1, _WORKSPACE_BYTES[device] // matrix_bytes)
    return -(-count // -(-count // most))
