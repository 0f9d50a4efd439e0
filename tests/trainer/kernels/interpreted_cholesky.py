"""Run by test_cholesky_kernel.py in a process where Triton's interpreter takes CPU tensors."""

from __future__ import annotations

import pytest
import torch

from trainer.kernels.cholesky_triton import LARGEST, inverse_factor_triton
from trainer.optim.cholesky import DampedInverse, inverse_factor


def moments(count: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(count, 2 * size + 1, size, generator=generator, dtype=torch.float64)
    return x.mT @ x / size + 0.5 * torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 33, 128])
def test_the_kernel_inverts_the_librarys_factor(size: int) -> None:
    c = moments(3, size)
    exact = torch.linalg.inv(torch.linalg.cholesky(c))
    junk = (c.tril() + torch.full_like(c, 7.0).triu(1)).float()
    out = torch.full((3, size + 2, size + 5), 9.0)
    inverse_factor_triton(junk, out[:, 1:-1, 2:-3])
    found = out[:, 1:-1, 2:-3]
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)
    assert not found.triu(1).any()
    assert (out[:, :, :2] == 9).all()
    assert (out[:, -1] == 9).all()


def test_blocks_of_it_make_a_larger_ones() -> None:
    c = moments(2, 2 * LARGEST + 31)
    exact = torch.linalg.inv(torch.linalg.cholesky(c))
    found = inverse_factor(c.float(), by_kernel=True)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)


def test_what_is_no_direction_of_the_inputs_is_dropped() -> None:
    x = torch.tensor([[1.0, 2.0, 0.0, 3.0]])
    out = torch.empty(1, 4, 4)
    inverse_factor_triton((x.mT @ x)[None], out)
    assert torch.equal(out[0].diagonal(), torch.tensor([1.0, 0.0, 0.0, 0.0]))


def test_a_matrix_that_is_not_finite_is_so_alone() -> None:
    c = torch.eye(4).repeat(3, 1, 1)
    c[1, 2, 1] = float("nan")
    out = torch.empty(3, 4, 4)
    inverse_factor_triton(c, out)
    assert out[1, 2].isnan().any()
    assert torch.equal(out[::2], torch.eye(4).repeat(2, 1, 1))


def test_a_singular_moment_is_survived() -> None:
    x = torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    c = (x.T @ x * 100)[None]
    assert DampedInverse(c, 0.0, "triton").applied(torch.ones(1, 2, 200)).isfinite().all()
