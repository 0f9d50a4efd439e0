from __future__ import annotations

from types import ModuleType
from typing import Literal

import pytest
import torch

from trainer.optim.polar import polar_factor, product_dtype
from trainer.optim.svd import exact_polar_factors

Method = Literal["polar-express", "jordan"]


def batch(rows: int, columns: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    return torch.randn(3, rows, columns, generator=generator, dtype=torch.float64).to(dtype)


def svd_polar(g: torch.Tensor) -> torch.Tensor:
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    factor: torch.Tensor = u @ vt
    return factor


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7), (1, 4), (4, 1)])
@pytest.mark.parametrize("method", ["polar-express", "jordan"])
@pytest.mark.parametrize("steps", [1, 5, 10])
def test_products_agree_with_polynomials_of_the_singular_values(
    oracle: ModuleType, shape: tuple[int, int], method: Method, steps: int
) -> None:
    g = batch(*shape)
    for compat in (False, True):
        ours = polar_factor(g, method, steps, compat)
        for one, expected in zip(ours, g, strict=True):
            wanted = torch.from_numpy(oracle.polar(expected.numpy(), method, steps, compat))
            torch.testing.assert_close(one, wanted, rtol=1e-9, atol=1e-10)


def test_ten_express_steps_reach_the_polar_factor() -> None:
    g = batch(20, 31)
    torch.testing.assert_close(polar_factor(g, steps=12), svd_polar(g), rtol=1e-9, atol=1e-9)


def test_five_express_steps_bring_singular_values_near_one() -> None:
    g = batch(48, 64)
    g[:, 0] *= 1e-3
    ours = polar_factor(g)
    exact = svd_polar(g)
    cosine = (ours * exact).sum() / (ours.norm() * exact.norm())
    values = torch.linalg.svdvals(ours)
    assert cosine > 0.98
    assert values[:, :-1].min() > 0.8
    assert values.max() < 1.2


def test_fp32_agrees_with_fp64() -> None:
    g = batch(24, 40, torch.float32)
    ours = polar_factor(g)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), polar_factor(g.double()), rtol=1e-4, atol=1e-5)


def test_a_cpu_never_multiplies_in_bf16() -> None:
    cpu = torch.device("cpu")
    assert product_dtype(cpu, torch.bfloat16) == torch.float32
    assert product_dtype(cpu, torch.float64) == torch.float64


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 0), torch.float32), ((7, 5), torch.float32), ((8, 0), torch.bfloat16)],
)
def test_a_gpu_multiplies_in_bf16_where_it_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr("torch.version.hip", None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _device: capability)
    assert product_dtype(torch.device("cuda"), torch.float32) == dtype


def test_zeros_stay_zero_and_disturb_no_neighbour() -> None:
    g = batch(4, 6)
    g[1] = 0
    ours = polar_factor(g)
    assert torch.equal(ours[1], torch.zeros(4, 6, dtype=torch.float64))
    torch.testing.assert_close(ours[2], polar_factor(g[2:])[0], rtol=1e-12, atol=1e-12)


def test_zero_padding_changes_nothing() -> None:
    g = batch(4, 6)
    padded = torch.nn.functional.pad(g, (0, 2, 0, 4))
    torch.testing.assert_close(polar_factor(padded)[:, :4, :6], polar_factor(g))


def test_scale_does_not_matter() -> None:
    g = batch(5, 8)
    torch.testing.assert_close(polar_factor(g * 1e-12), polar_factor(g), rtol=1e-9, atol=1e-9)


def test_exact_factors_have_singular_values_of_1_and_of_nothing_none() -> None:
    generator = torch.Generator().manual_seed(0)
    tall, thin = torch.randn(9, 4, generator=generator), torch.randn(9, 2, generator=generator)
    flat = thin @ torch.randn(2, 4, generator=generator)  # rank 2
    bad = tall.clone()
    bad[3, 1] = float("inf")
    given = [tall, flat, torch.zeros(9, 4), bad, torch.empty(0, 3), tall.bfloat16().T]
    ours = exact_polar_factors(given)
    for factor, matrix, rank in zip(ours, given, (4, 2, 0), strict=False):
        values = torch.linalg.svdvals(factor)
        torch.testing.assert_close(values[:rank], torch.ones(rank), rtol=1e-5, atol=0)
        assert (values[rank:] < 1e-6).all()
        nuclear = torch.linalg.svdvals(matrix).sum()
        torch.testing.assert_close((factor * matrix).sum(), nuclear)
    assert ours[3].isnan().all()
    assert ours[4].shape == (0, 3)
    assert ours[5].dtype == torch.bfloat16
    torch.testing.assert_close(ours[5].T.float(), ours[0], rtol=0, atol=0.02)
