from __future__ import annotations

import pytest
import torch

from trainer.kernels import gram as kernel
from trainer.optim.gram import gram, symmetric

PANEL = 128


def inputs(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 7, PANEL, 2 * PANEL - 1, 2 * PANEL, 2 * PANEL + 1, 3 * PANEL])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_the_lower_triangle_is_the_sum_of_the_rows_products(size: int, count: int) -> None:
    x = inputs(count, size)
    exact = torch.einsum("ri,rj->ij", x, x)
    torch.testing.assert_close(gram(x).tril(), exact.tril())
    torch.testing.assert_close(symmetric(gram(x)[None])[0], exact)


def test_columns_that_do_not_lie_beside_each_other_are_taken_as_they_are() -> None:
    x = inputs(2 * PANEL + 30, 40)
    for view in (x.T, x.T[::2, 3:], x.expand(2, *x.shape)[1]):
        torch.testing.assert_close(symmetric(gram(view)[None])[0], view.T @ view)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_fp32(dtype: torch.dtype) -> None:
    x = inputs(3000, 20).to(dtype)
    ours = gram(x)
    assert ours.dtype == torch.float32
    exact = x.double().T @ x.double()
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-3)


def test_autocast_does_not_reach_it() -> None:
    x = inputs(64, 20).float()
    expected = gram(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gram(x), expected)


@pytest.mark.parametrize("size", [30, 3 * PANEL])
def test_two_sums_of_the_same_rows_are_equal_to_the_bit(size: int) -> None:
    x = inputs(200, size).float()
    assert torch.equal(gram(x), gram(x.clone()))


def test_a_cpu_leaves_nothing_to_the_kernel() -> None:
    assert kernel.split_of(torch.zeros(1 << 15, 1024, dtype=torch.bfloat16)) is None


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [
        (8191, 1024, None),
        (8192, 768, None),
        (8192, 1024, (3, 4, 4)),
        (16384, 897, (3, 4, 4)),
        (8192, 896, None),
        (8192, 2048, None),
        (8192, 2752, (1, 4, 3)),
        (32767, 768, None),
        (32768, 768, (6, 8, 4)),
        (1 << 17, 1024, (3, 8, 4)),
        (32768, 1025, None),
        (32768, 2048, (3, 4, 3)),
        (32768, 2752, (1, 4, 3)),
        (32768, 4096, None),
    ],
)
def test_the_kernel_takes_what_it_was_measured_to_be_faster_at(
    rows: int, size: int, expected: tuple[int, int, int] | None
) -> None:
    assert kernel.measured_split(rows, size) == expected
