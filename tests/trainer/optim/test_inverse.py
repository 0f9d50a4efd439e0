from __future__ import annotations

from types import ModuleType

import pytest
import torch

from trainer.optim import inverse
from trainer.optim.cholesky import DampedInverse


def moments(size: int, lowest: float, seed: int = 0) -> torch.Tensor:
    """Three symmetric matrices with eigenvalues from ``lowest`` to 1, times 1, 2 and 3."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, size, size, generator=generator, dtype=torch.float64)
    q, _ = torch.linalg.qr(noise)
    values = torch.linspace(lowest, 1, size, dtype=torch.float64)
    scale = torch.arange(1, 4, dtype=torch.float64)[:, None, None]
    c: torch.Tensor = scale * (q * values) @ q.mT
    return c


def test_the_power_method_finds_the_largest_eigenvalue_and_singular_value() -> None:
    c = moments(12, 0.0)
    exact = torch.linalg.eigvalsh(c)[:, -1]
    torch.testing.assert_close(inverse.largest_eigenvalue(c, 500), exact, rtol=1e-6, atol=0)
    for o in (c[:, :7], c[:, :, :7]):
        exact = torch.linalg.matrix_norm(o, 2)
        torch.testing.assert_close(inverse.largest_singular_value(o, 500), exact, rtol=1e-6, atol=0)


def test_the_power_method_gives_a_batch_what_it_gives_each_alone() -> None:
    c = torch.cat([moments(9, 0.0), moments(9, 0.9, seed=1)])
    together = inverse.largest_eigenvalue(c, 50)
    alone = torch.cat([inverse.largest_eigenvalue(one[None], 50) for one in c])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [60, 300])
@pytest.mark.parametrize("lowest", [1e-5, 1e-2])
def test_newton_agrees_with_its_oracle(oracle: ModuleType, steps: int, lowest: float) -> None:
    c = moments(11, lowest)
    for one, ours in zip(c, inverse.newton_pinv(c, 1e-2, steps), strict=True):
        expected = torch.from_numpy(oracle.soderstrom_stewart(one.numpy(), 1e-2, steps))
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)


def test_newton_inverts_what_is_well_conditioned() -> None:
    c = moments(8, 0.2)
    torch.testing.assert_close(
        inverse.newton_pinv(c, 1e-6, 50), torch.linalg.inv(c), rtol=1e-6, atol=1e-6
    )


def test_newton_cuts_small_eigenvalues_off() -> None:
    c = moments(6, 0.5)
    values, vectors = torch.linalg.eigh(c)
    values[:, 0] = 1e-7
    c = (vectors * values[:, None]) @ vectors.mT
    ours = inverse.newton_pinv(c, 1e-3, 50)
    exact = torch.linalg.pinv(c, rtol=1e-3, hermitian=True)
    torch.testing.assert_close(ours, exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("add", [None, 0.0, 1e-3, 0.2])
def test_chebyshev_agrees_with_its_oracle(oracle: ModuleType, add: float | None) -> None:
    c = moments(11, 1e-2)
    # The package bounds the spectrum by the power method, the oracle by eigenvalues.
    ours = inverse.chebyshev_pinv(c, add, 1e-3, 300)
    for one, mine in zip(c, ours, strict=True):
        expected = torch.from_numpy(oracle.chebyshev(one.numpy(), add, 1e-3, 300))
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def test_the_damped_inverse_is_chebyshevs_reference_up_to_a_largest_eigenvalue_of_one() -> None:
    c = moments(16, 0.0) / 3
    identity = torch.eye(16, dtype=torch.float64).expand(3, 16, 16)
    exact = DampedInverse(c.clone(), 1e-3).applied(identity)
    ours = inverse.chebyshev_pinv(c, 1e-3, 1e-3, 50)
    assert ((ours - exact).norm() / exact.norm()) < 1e-5
