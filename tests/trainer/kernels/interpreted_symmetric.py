# ruff: noqa: N803 - compile-time constants are in capitals
"""Run by test_symmetric.py in a process of its own, where Triton's interpreter takes CPU tensors.

In fp32 and fp16: the interpreter's bf16 products are wrong (triton-lang/triton#11584).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from trainer.kernels.gram import Split, gram_by_parts
from trainer.kernels.symmetric import symmetric_product
from trainer.kernels.symmetric_triton import (
    Tiling,
    _tile,
    gram_parts_triton,
    symmetric_product_triton,
    tiling_of,
)
from trainer.optim import batches
from trainer.optim.polar import coefficients

SMALL = Tiling(block=16, depth=16, warps=4, stages=2, group=2)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def symmetric(batch: int, side: int, seed: int = 1) -> torch.Tensor:
    half = random(batch, side, side, seed=seed)
    return half + half.mT


def exact(x, plus=None, alpha=1.0, beta=1.0, diagonal=0.0) -> torch.Tensor:
    each = x.double().numpy()
    total = alpha * np.einsum("bik,bjk->bij", each, each)
    if plus is not None:
        total = total + beta * plus.double().numpy()
    return torch.from_numpy(total + diagonal * np.eye(x.shape[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("batch", "rows", "columns"),
    [
        pytest.param(1, 16, 16, id="one tile"),
        pytest.param(3, 32, 48, id="whole tiles"),
        pytest.param(2, 37, 21, id="odd sides"),
        pytest.param(1, 5, 70, id="less than a tile"),
        pytest.param(2, 49, 1, id="one column"),
        pytest.param(1, 64, 7, id="whole groups"),
    ],
)
def test_the_kernel_agrees_with_fp64(
    dtype: torch.dtype, batch: int, rows: int, columns: int
) -> None:
    x = random(batch, rows, columns, dtype=dtype)
    plus = symmetric(batch, rows).to(dtype)
    tolerance = TOLERANCE[dtype] * columns**0.5
    out = torch.full((batch, rows, rows), float("nan"), dtype=dtype)
    symmetric_product_triton(x, None, out, 1.0, 1.0, 0.0, SMALL)
    torch.testing.assert_close(out.double(), exact(x), rtol=tolerance, atol=tolerance)
    symmetric_product_triton(x, plus, out, 0.5, -2.0, 3.0, SMALL)
    wanted = exact(x, plus, 0.5, -2.0, 3.0)
    torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance)


@triton.jit
def tiles_kernel(rows, columns, side, COUNT: tl.constexpr, GROUP: tl.constexpr):
    index = tl.arange(0, COUNT)
    row, column = _tile(tl.minimum(index, side * (side + 1) // 2 - 1), side, GROUP)
    tl.store(rows + index, row)
    tl.store(columns + index, column)


@pytest.mark.parametrize("group", [1, 3, 8, 64])
@pytest.mark.parametrize("side", [1, 2, 9, 64, 300])
def test_every_tile_of_a_triangle_is_visited_once(side: int, group: int) -> None:
    tiles = side * (side + 1) // 2
    count = triton.next_power_of_2(tiles)
    rows, columns = (torch.empty(count, dtype=torch.int32) for _ in range(2))
    tiles_kernel[(1,)](rows, columns, side, COUNT=count, GROUP=group)
    visited = set(zip(rows[:tiles].tolist(), columns[:tiles].tolist(), strict=True))
    assert visited == {(i, j) for i in range(side) for j in range(i + 1)}


def test_a_transposed_and_a_strided_operand() -> None:
    tall = random(2, 50, 20)
    out = torch.empty(2, 20, 20)
    symmetric_product_triton(tall.mT, None, out, 1.0, 1.0, 0.0, SMALL)
    torch.testing.assert_close(out.double(), exact(tall.mT), rtol=1e-5, atol=1e-5)
    within = random(2, 40, 60)[:, 3:23, ::2]
    symmetric_product_triton(within, None, out, 1.0, 1.0, 0.0, SMALL)
    torch.testing.assert_close(out.double(), exact(within), rtol=1e-5, atol=1e-5)


def test_accumulating_in_place_of_another_dtype_and_within_a_larger_tensor() -> None:
    x = random(2, 19, 33, dtype=torch.float16)
    around = torch.full((2, 30, 40), 7.0)
    plus = symmetric(2, 19)
    around[:, 5:24, 9:28] = plus
    out = around[:, 5:24, 9:28]
    symmetric_product_triton(x, out, out, 2.0, 1.0, 0.0, SMALL)
    wanted = exact(x, plus, 2.0)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-4)
    around[:, 5:24, 9:28] = 7.0
    assert torch.equal(around, torch.full_like(around, 7.0))


def test_the_result_is_symmetric_to_the_bit_across_tiles_and_twice_the_same() -> None:
    x = random(1, 48, 40)
    first = symmetric_product(x, backend="triton")
    second = symmetric_product(x, backend="triton")
    assert torch.equal(first, second)
    block = SMALL.block
    out = torch.empty(1, 48, 48)
    symmetric_product_triton(x, None, out, 1.0, 1.0, 0.0, SMALL)
    for i in range(0, 48, block):
        for j in range(0, i, block):
            lower = out[0, i : i + block, j : j + block]
            assert torch.equal(lower, out[0, j : j + block, i : i + block].T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_public_call_uses_the_kernel_with_its_own_tiling(dtype: torch.dtype) -> None:
    side = tiling_of(dtype, 1, 1).block + 9
    x = random(1, side, 20, dtype=dtype)
    twin = symmetric_product(x.float(), alpha=0.5, diagonal=1.0, backend="torch")
    ours = symmetric_product(x, alpha=0.5, diagonal=1.0, backend="triton")
    torch.testing.assert_close(ours.float(), twin, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("rows", "part"), [(64, 64), (64, 16), (70, 32), (70, 23), (5, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parts_of_the_rows_add_up_to_the_whole_sum(
    rows: int, part: int, dtype: torch.dtype
) -> None:
    x = random(rows, 2 * 37, dtype=dtype)[:, ::2]
    parts = torch.full((-(-rows // part), 37, 37), float("nan"))
    gram_parts_triton(x, parts, part, SMALL)
    for found, own in zip(parts, x.split(part), strict=True):
        wanted = exact(own.T[None])[0]
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("rows", "parts"), [(64, 1), (200, 3), (129, 2), (65, 9), (1, 4)])
def test_x_transposed_x_by_parts_agrees_with_fp64(rows: int, parts: int) -> None:
    x = random(rows, 33, dtype=torch.float16)
    ours = gram_by_parts(x, parts)
    torch.testing.assert_close(ours.double(), exact(x.T[None])[0], rtol=1e-5, atol=1e-4)


def test_x_transposed_x_by_a_split_of_the_table_agrees_with_fp64() -> None:
    x = random(129, 131, dtype=torch.float16)
    split = Split(3, 4, 3)
    ours = gram_by_parts(x, split.parts, split.tiling)
    torch.testing.assert_close(ours.double(), exact(x.T[None])[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(20, 30), (70, 20)])
def test_polar_factors_by_the_kernel_agree_with_whole_products(shape: tuple[int, int]) -> None:
    matrices = [random(*shape, seed=i) for i in range(2)]
    polynomials = coefficients("polar-express", 3)
    ours, twins = (torch.empty(2, *shape) for _ in range(2))
    batches._write_on_cuda(matrices, ours, polynomials, "triton")
    batches._write_on_cuda(matrices, twins, polynomials, "torch")
    torch.testing.assert_close(ours, twins, rtol=1e-4, atol=1e-5)


def test_one_matrix_that_is_not_finite_leaves_the_others_alone() -> None:
    x = random(2, 20, 20)
    x[0, 3, 4] = float("nan")
    out = symmetric_product(x, backend="triton")
    assert out[0].isnan().any()
    torch.testing.assert_close(out[1:].double(), exact(x[1:]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "rows", "block", "warps", "stages"),
    [(1, 512, 64, 4, 4), (6, 768, 128, 8, 4), (12, 768, 128, 8, 3), (24, 768, 128, 8, 3)],
)
def test_the_tiling_follows_from_how_many_tiles_there_are(
    batch: int, rows: int, block: int, warps: int, stages: int
) -> None:
    tiling = tiling_of(torch.bfloat16, batch, rows)
    assert (tiling.block, tiling.warps, tiling.stages) == (block, warps, stages)
    assert tiling_of(torch.float32, batch, rows).block == 64
