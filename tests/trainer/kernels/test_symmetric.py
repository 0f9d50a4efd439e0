from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.kernels.panels import panel_rows, symmetric_panels
from trainer.kernels.symmetric import symmetric_product

HERE = Path(__file__).parent
TENSOR_CORES = {80: "mma.sync.aligned", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def exact(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.einsum("bik,bjk->bij", x.numpy(), x.numpy()))


def test_the_kernel_agrees_with_fp64_in_tritons_interpreter(in_the_interpreter: Any) -> None:
    in_the_interpreter("interpreted_symmetric.py")


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernel_compiles_to_tensor_cores_without_spills(
    capability: int, tmp_path: Path, with_triton: Any
) -> None:
    done = with_triton(
        HERE / "compile_symmetric.py",
        capability,
        tmp_path,
        TRITON_CACHE_DIR=str(tmp_path / "cache"),
        TRITON_INTERPRET="0",
    )
    assert done.returncode == 0, done.stderr
    compiled = {path.stem: path.read_text() for path in tmp_path.glob("*.ptx")}
    batches = {f"batch of {batch}" for batch in (1, 12)}
    splits = {name for name in compiled if name.startswith("gram by")}
    assert len(splits) == (5 if capability == 90 else 0)
    assert set(compiled) == {"wide", "tall", "ragged", "accumulated", "fp32", *batches, *splits}
    for name, ptx in compiled.items():
        told = (tmp_path / f"{name}.txt").read_text()
        assert f".target sm_{capability}" in ptx
        assert "0 bytes spill stores, 0 bytes spill loads" in told
        assert ".local" not in ptx
        [shared] = re.findall(r"(\d+) bytes shared memory", told)
        assert int(shared) <= {80: 163, 90: 227, 100: 227}[capability] * 1024
        # fp32 in full precision has no tensor cores to go to.
        assert (TENSOR_CORES[capability] in ptx) == (name != "fp32")
        assert "cp.async.cg.shared.global" in ptx
        assert "st.global.v4" in ptx


@pytest.mark.parametrize("side", [1, 7, 64, 255, 256, 300, 513])
def test_panels_agree_with_the_whole_product(side: int) -> None:
    x = random(2, side, 33)
    plus = random(2, side, side, seed=1)
    plus = plus + plus.mT
    out = torch.full_like(plus, float("nan"))
    torch.testing.assert_close(symmetric_panels(x, x.mT, out), exact(x))
    torch.testing.assert_close(
        symmetric_panels(x, x.mT, out, plus, 0.5, -2), 0.5 * exact(x) - 2 * plus
    )
    accumulated = plus.clone()
    symmetric_panels(x, x.mT, accumulated, accumulated)
    torch.testing.assert_close(accumulated, exact(x) + plus)
    assert torch.equal(accumulated.tril(-1), accumulated.mT.tril(-1)) or side < 256


def test_panels_of_two_factors_that_commute() -> None:
    x = random(1, 300, 20)
    a = exact(x)
    b = a @ a + 0.5 * a
    torch.testing.assert_close(
        symmetric_panels(a, b, torch.empty_like(a)), a @ b, rtol=1e-9, atol=1e-6
    )


@pytest.mark.parametrize("side", range(256, 3500, 97))
def test_panels_are_few_and_not_thin(side: int) -> None:
    rows = panel_rows(side)
    assert rows % 16 == 0
    assert rows >= 128
    assert -(-side // rows) <= 8


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("tall", [False, True])
def test_the_twin_agrees_with_fp64(backend, tall: bool) -> None:
    x = random(3, 9, 5).mT if tall else random(3, 9, 5)
    plus = random(3, x.shape[1], x.shape[1], seed=2)
    plus = plus + plus.mT
    torch.testing.assert_close(symmetric_product(x, backend=backend), exact(x))
    wanted = 0.5 * exact(x) - 2 * plus + 3 * torch.eye(x.shape[1], dtype=torch.float64)
    ours = symmetric_product(x, plus=plus, alpha=0.5, beta=-2, diagonal=3, backend=backend)
    torch.testing.assert_close(ours, wanted)
    out = plus.clone()
    assert symmetric_product(x, plus=out, out=out, backend=backend) is out
    torch.testing.assert_close(out, exact(x) + plus)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_narrow_rows_are_summed_in_the_results_dtype(backend) -> None:
    x = torch.full((1, 2, 4096), 1.0 + 2**-7, dtype=torch.bfloat16)
    out = torch.empty(1, 2, 2)
    symmetric_product(x, out=out, backend=backend)
    torch.testing.assert_close(out, torch.full((1, 2, 2), 4096 * (1 + 2**-7) ** 2))
