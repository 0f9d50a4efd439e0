from __future__ import annotations

import pytest
import torch

from trainer.kernels.symmetric import symmetric_product
from trainer.optim.batches import polar_factors
from trainer.optim.polar import polar_factor

SHAPES = [
    pytest.param(12, 768, 768, id="gpt-small's attention output"),
    pytest.param(12, 768, 2304, id="gpt-small's attention input"),
    pytest.param(12, 768, 2048, id="gpt-small's SwiGLU"),
    pytest.param(6, 1024, 2730, id="gpt-medium's SwiGLU, off alignment"),
    pytest.param(6, 1024, 2752, id="gpt-medium's SwiGLU, padded"),
    pytest.param(2, 1280, 3413, id="gpt-large's SwiGLU, odd"),
    pytest.param(3, 201, 333, id="odd sides"),
    pytest.param(1, 4096, 4096, id="one large matrix"),
]


def random(*shape: int, device: torch.device, dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def distance(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("batch", "rows", "columns"), SHAPES)
@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_symmetric_kernel_agrees_with_fp64(
    cuda: torch.device, batch: int, rows: int, columns: int, tall: bool, dtype: torch.dtype
) -> None:
    # At 1 / sqrt(columns) the results are of size 1 and their rounding is that of the dtype.
    shape = (batch, columns, rows) if tall else (batch, rows, columns)
    x = (random(*shape, device=cuda) / columns**0.5).to(dtype)
    x = x.mT if tall else x
    plus = random(batch, rows, rows, device=cuda, seed=1)
    plus = ((plus + plus.mT) / rows**0.5).to(dtype)
    out = torch.full_like(plus, float("nan"))
    parts = {"plus": plus, "alpha": 0.5, "beta": -2.0, "diagonal": 3.0}
    symmetric_product(x, **parts, out=out, backend="triton")
    eye = torch.eye(rows, device=cuda, dtype=torch.float64)
    exact = 0.5 * x.double() @ x.double().mT - 2 * plus.double() + 3 * eye
    limit = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 1e-5}[dtype]
    assert distance(out, exact) < limit
    assert distance(symmetric_product(x, backend="torch"), x.double() @ x.double().mT) < limit
    again = torch.empty_like(out)
    symmetric_product(x, **parts, out=again, backend="triton")
    assert torch.equal(out, again)


def test_the_kernel_accumulates_bf16_rows_in_fp32(cuda: torch.device) -> None:
    inputs = [random(4096, 768, device=cuda, dtype=torch.bfloat16, seed=i) for i in range(3)]
    total = torch.zeros(1, 768, 768, device=cuda)
    for x in inputs:
        symmetric_product(x.mT[None], plus=total, out=total, backend="triton")
    exact = sum(x.double().mT @ x.double() for x in inputs)
    # Tensor cores cut off what fp32 does not hold: 4096 / 16 additions that lose 2^-23 each are
    # 3e-5; a total kept in bf16 would be off by 1e-3.
    assert distance(total[0], exact) < 3e-5


@pytest.mark.parametrize("backend", ["auto", "torch", "triton"])
@pytest.mark.parametrize("method", ["polar-express", "jordan"])
@pytest.mark.parametrize(
    "shape", [(768, 768), (2304, 768), (768, 2048), (2730, 1024), (1024, 2730), (100, 130)]
)
def test_factors_agree_with_fp64_to_what_bf16_holds(
    cuda: torch.device, shape: tuple[int, int], method, backend
) -> None:
    matrices = [random(*shape, device=cuda, seed=i) for i in range(3)]
    ours = polar_factors(matrices, method, 5, gptopt_compat=False, backend=backend)
    for one, matrix in zip(ours, matrices, strict=True):
        exact = polar_factor(matrix.double()[None], method, 5, dtype=torch.float64)[0]
        assert one.dtype == torch.float32
        assert distance(one, exact) < 3e-2


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_large_set_in_chunks_with_zeros_and_a_matrix_that_is_not_finite(
    cuda: torch.device, backend
) -> None:
    matrices = [random(1024, 2730, device=cuda, seed=i) for i in range(40)]
    matrices[1].zero_()
    matrices[3][0, 0] = float("nan")
    ours = polar_factors(matrices, "polar-express", 5, gptopt_compat=False, backend=backend)
    assert not ours[1].any()
    assert ours[3].isnan().all()
    for i in (0, 2, 39):
        exact = polar_factor(matrices[i].double()[None], dtype=torch.float64)[0]
        assert distance(ours[i], exact) < 3e-2


def test_nothing_waits_for_the_device(cuda: torch.device, no_sync) -> None:
    matrices = [random(*shape, device=cuda) for shape in ((768, 2048), (2730, 1024), (64, 64))]
    polar_factors(matrices, "polar-express", 5, gptopt_compat=False)
    with no_sync():
        polar_factors(matrices, "polar-express", 5, gptopt_compat=False)


def test_a_graph_replays_the_factors_of_new_numbers(cuda: torch.device) -> None:
    shapes = [(768, 2048), (768, 2048), (2730, 1024), (1024, 2730)]
    matrices = [random(*shape, device=cuda, seed=i) for i, shape in enumerate(shapes)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        polar_factors(matrices, "polar-express", 5, gptopt_compat=False)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = polar_factors(matrices, "polar-express", 5, gptopt_compat=False)
    for i, matrix in enumerate(matrices):
        matrix.copy_(random(*matrix.shape, device=cuda, seed=100 + i))
    graph.replay()
    wanted = polar_factors(matrices, "polar-express", 5, gptopt_compat=False)
    for one, other in zip(captured, wanted, strict=True):
        assert distance(one, other.double()) < 1e-3
