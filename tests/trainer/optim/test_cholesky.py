from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.optim.cholesky import BLOCK, DampedInverse, Way, inverse_factor

WAYS: tuple[Way, ...] = ("solve", "blocks")


def moments(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Symmetric positive definite, eigenvalues from about 1 to 10."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2 * size + 1, size, generator=generator, dtype=torch.float64)
    return x.mT @ x / size + 0.5 * torch.eye(size, dtype=torch.float64)


def rows(count: int, outputs: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, outputs, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("add", [0.0, 1e-3, 0.5])
@pytest.mark.parametrize("size", [1, 10, BLOCK - 1, BLOCK + 1, 2 * BLOCK + 44])
@pytest.mark.parametrize("outputs", [3, 400])
def test_what_comes_out_times_the_damped_matrix_is_what_went_in(
    way: Way, add: float, size: int, outputs: int
) -> None:
    c, m = moments(2, size), rows(2, outputs, size)
    damped = c + add * torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(DampedInverse(c, add, way).applied(m) @ damped, m)


@pytest.mark.parametrize("way", WAYS)
def test_only_the_lower_triangle_is_read(way: Way) -> None:
    c, m = moments(2, 2 * BLOCK), rows(2, 5, 2 * BLOCK)
    exact = DampedInverse(c.clone(), 0.1, way).applied(m)
    junk = c.tril() + torch.full_like(c, 7.0).triu(1)
    assert torch.equal(DampedInverse(junk, 0.1, way).applied(m), exact)


@pytest.mark.parametrize("way", WAYS)
def test_some_of_a_batch_get_what_they_get_alone(way: Way) -> None:
    c, m = moments(5, 40), rows(2, 7, 40)
    some = DampedInverse(c.clone(), 0.1, way).applied(m, slice(2, 4))
    alone = [DampedInverse(c[i][None].clone(), 0.1, way).applied(m[i - 2][None]) for i in (2, 3)]
    torch.testing.assert_close(some, torch.cat(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("outputs", [16, 600])
def test_fp32_keeps_what_the_condition_leaves_of_its_digits(way: Way, outputs: int) -> None:
    size = 300
    generator = torch.Generator().manual_seed(2)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    exact = (q * torch.logspace(-4, 0, size, dtype=torch.float64)) @ q.T
    m = rows(1, outputs, size)
    damped = exact + 1e-4 * torch.eye(size, dtype=torch.float64)
    expected = torch.from_numpy(np.linalg.solve(damped.numpy(), m[0].numpy().T).T)
    ours = DampedInverse(exact.float()[None], 1e-4, way).applied(m.float())[0].double()
    # The condition number is 5e3 and fp32's rounding error 6e-8.
    assert (ours - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("way", WAYS)
def test_a_singular_matrix_in_fp32_is_survived(way: Way) -> None:
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    c = (x.T @ x * 100)[None]
    assert DampedInverse(c, 0.0, way).applied(torch.ones(1, 2, 300)).isfinite().all()


def test_the_factor_built_from_blocks_is_the_inverse_of_the_librarys() -> None:
    c = moments(3, 2 * BLOCK + 60)
    exact = torch.linalg.inv(torch.linalg.cholesky(c))
    torch.testing.assert_close(inverse_factor(c.clone()), exact)
