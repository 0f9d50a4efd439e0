from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from trainer.kernels import threads
from trainer.optim import batches, gram_form
from trainer.optim.batches import polar_factors
from trainer.optim.polar import coefficients, polar_factor

SHAPES = [(5, 9), (9, 5), (7, 7), (1, 4), (4, 1), (12, 40), (40, 12)]


def random(rows: int, columns: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * rows + 10 * columns + seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype)


def conditioned(rows: int, columns: int, number: float) -> torch.Tensor:
    u, _, vt = torch.linalg.svd(random(rows, columns), full_matrices=False)
    values = torch.logspace(0, -np.log10(number), min(rows, columns), dtype=torch.float64)
    made: torch.Tensor = (u * values) @ vt
    return made


def distance(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


def on_cuda_as_here(matrices, method="polar-express", steps=5, backend="torch"):
    """What is done on CUDA, on a CPU and in its dtype: padded, step by step."""
    factors = torch.empty(len(matrices), *matrices[0].shape, dtype=matrices[0].dtype)
    batches._write_on_cuda(matrices, factors, coefficients(method, steps), backend)
    return list(factors)


@pytest.fixture(params=["plain", "gram"])
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form that matrices of this size have, and that of larger ones."""
    if request.param == "gram":
        monkeypatch.setattr(gram_form, "_LEAST_WORK", 0)
        monkeypatch.setattr(gram_form, "LEAST_SIDE", 0)


@pytest.mark.usefixtures("_form")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", ["polar-express", "jordan"])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8])
def test_factors_agree_with_polynomials_of_the_singular_values(
    oracle: ModuleType, shape: tuple[int, int], method, steps: int
) -> None:
    matrices = [random(*shape, seed=i) for i in range(3)]
    for compat in (False, True):
        ours = polar_factors(matrices, method, steps, compat)
        for one, matrix in zip(ours, matrices, strict=True):
            wanted = torch.from_numpy(oracle.polar(matrix.numpy(), method, steps, compat))
            torch.testing.assert_close(one, wanted, rtol=1e-8, atol=1e-9)
    for one, matrix in zip(on_cuda_as_here(matrices, method, steps), matrices, strict=True):
        wanted = torch.from_numpy(oracle.polar(matrix.numpy(), method, steps))
        torch.testing.assert_close(one, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("_form")
@pytest.mark.parametrize("number", [1, 1e2, 1e4, 1e8])
@pytest.mark.parametrize("shape", [(48, 48), (48, 120), (150, 48)])
@pytest.mark.parametrize("method", ["polar-express", "jordan"])
def test_fp32_holds_at_any_condition_number(
    oracle: ModuleType, shape: tuple[int, int], number: float, method
) -> None:
    matrix = conditioned(*shape, number)
    exact = torch.from_numpy(oracle.polar(matrix.numpy(), method, 5))
    [ours] = polar_factors([matrix.float()], method, 5, gptopt_compat=False)
    assert distance(ours, exact) < 1e-4


def test_threads_with_matrices_of_their_own_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = [random(*shape, seed=i) for i, shape in enumerate([*SHAPES, *SHAPES, (12, 40)])]
    alone = polar_factors(matrices, "polar-express", 5, gptopt_compat=False)
    monkeypatch.setattr(threads, "_LEAST_US", 0.0)
    monkeypatch.setattr(threads, "_LEAST_BUSY", 0.0)
    torch.set_num_threads(2)
    shared = polar_factors(matrices, "polar-express", 5, gptopt_compat=False)
    for one, other in zip(alone, shared, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_panels_and_chunks_change_nothing(
    oracle: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [(260, 400), (400, 260)] * 2
    matrices = [random(*shape, seed=i, dtype=torch.float32) for i, shape in enumerate(shapes)]
    ours = polar_factors(matrices, "polar-express", 5, gptopt_compat=False)
    monkeypatch.setitem(batches._WORKSPACE_BYTES, "cpu", 1 << 40)
    at_once = polar_factors(matrices, "polar-express", 5, gptopt_compat=False)
    for one, other, matrix in zip(ours, at_once, matrices, strict=True):
        exact = torch.from_numpy(oracle.polar(matrix.double().numpy()))
        assert distance(one, exact) < 3e-5
        assert distance(other, exact) < 3e-5


def test_chunks_of_a_batch_do_not_mix(oracle: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = [random(6, 10, seed=i) for i in range(7)]
    wanted = [torch.from_numpy(oracle.polar(matrix.numpy())) for matrix in matrices]
    for chunk in (1, 2, 3, 7):
        monkeypatch.setattr(batches, "_chunk", lambda *_, chunk=chunk: chunk)
        for ways in (
            polar_factors(matrices, "polar-express", 5, gptopt_compat=False),
            on_cuda_as_here(matrices),
        ):
            for one, exact in zip(ways, wanted, strict=True):
                torch.testing.assert_close(one, exact, rtol=1e-8, atol=1e-9)


def test_the_order_of_the_matrices_does_not_matter() -> None:
    matrices = [random(*shape, seed=i) for i, shape in enumerate(SHAPES * 2)]
    ours = polar_factors(matrices, "polar-express", 5, gptopt_compat=False)
    backwards = polar_factors(matrices[::-1], "polar-express", 5, gptopt_compat=False)[::-1]
    for one, other, matrix in zip(ours, backwards, matrices, strict=True):
        assert one.shape == matrix.shape
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_a_transposed_matrix_has_the_transposed_factor() -> None:
    matrix = random(6, 20)
    views = [matrix, matrix.T, matrix.T.contiguous(), matrix.repeat(2, 2)[:6, :20]]
    factors = polar_factors(views, "polar-express", 5, gptopt_compat=False)
    for view, factor in zip(views, factors, strict=True):
        wide = factor if view.shape == matrix.shape else factor.T
        torch.testing.assert_close(wide, factors[0], rtol=1e-9, atol=1e-10)


def test_padding_to_another_multiple_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = [random(6, 10, seed=i) for i in range(2)]
    wanted = on_cuda_as_here(matrices)
    monkeypatch.setattr(batches, "_PADDED_TO", 1)
    for one, other in zip(on_cuda_as_here(matrices), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_factors_have_the_matrices_dtype_and_the_matrices_stay(
    oracle: ModuleType, dtype: torch.dtype
) -> None:
    matrix = random(8, 14, dtype=dtype)
    before = matrix.clone()
    [ours] = polar_factors([matrix], "polar-express", 5, gptopt_compat=False)
    assert ours.dtype == dtype
    assert torch.equal(matrix, before)
    exact = torch.from_numpy(oracle.polar(matrix.double().numpy()))
    assert distance(ours, exact) < (5e-3 if dtype == torch.bfloat16 else 1e-5)


def test_zeros_stay_zero_and_what_is_not_finite_stays_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrices = [random(6, 10, seed=i) for i in range(4)]
    matrices[1] = torch.zeros(6, 10, dtype=torch.float64)
    alone = polar_factors(matrices[3:], "polar-express", 5, gptopt_compat=False)
    matrices[2] = matrices[2].clone()
    matrices[2][3, 4] = float("nan")
    for chunk in (1, 4):
        monkeypatch.setattr(batches, "_chunk", lambda *_, chunk=chunk: chunk)
        for ours in (
            polar_factors(matrices, "polar-express", 5, gptopt_compat=False),
            on_cuda_as_here(matrices),
        ):
            assert torch.equal(ours[1], torch.zeros(6, 10, dtype=torch.float64))
            assert ours[2].isnan().all()
            torch.testing.assert_close(ours[3], alone[0], rtol=1e-9, atol=1e-10)


def test_scale_does_not_matter_until_squares_vanish() -> None:
    matrix = random(6, 10, dtype=torch.float32)
    scaled = [matrix, matrix * 1e-15, matrix * 1e15, matrix * 1e-18, matrix * 1e-30]
    ours = polar_factors(scaled, "polar-express", 5, gptopt_compat=False)
    for one in ours[1:3]:
        torch.testing.assert_close(one, ours[0], rtol=1e-4, atol=1e-5)
    for one, other in zip(ours, scaled, strict=True):
        assert torch.linalg.svdvals(one).max() < 1.2
        torch.testing.assert_close(one, polar_factor(other[None])[0], rtol=1e-3, atol=1e-4)


def test_two_calls_agree_to_the_bit() -> None:
    matrices = [random(*shape, dtype=torch.float32) for shape in SHAPES]
    first, second = (
        polar_factors(matrices, "polar-express", 5, gptopt_compat=False) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_nothing_and_matrices_without_numbers() -> None:
    assert polar_factors([], "polar-express", 5, gptopt_compat=False) == []
    [ours] = polar_factors([torch.empty(0, 4)], "polar-express", 5, gptopt_compat=False)
    assert ours.shape == (0, 4)


def test_matrices_that_want_gradients_are_taken() -> None:
    matrix = torch.nn.Parameter(random(4, 6))
    [ours] = polar_factors([matrix], "polar-express", 5, gptopt_compat=False)
    assert not ours.requires_grad


@pytest.mark.parametrize("shape", [(300, 768), (768, 300)])
def test_on_a_cpu_the_workspace_of_many_matrices_is_that_of_one(shape: tuple[int, int]) -> None:
    count, (rows, columns) = 24, shape
    one = 4 * (2 * rows * columns + gram_form.SQUARES * min(shape) ** 2)
    assert batches._chunk(count, one, "cpu") == 1
    assert batches._chunk(count, 1 << 16, "cpu") == count
    assert batches._chunk(count, 1 << 30, "cuda") == 1
    assert batches._chunk(count, (256 << 20) // 20, "cuda") == 12
