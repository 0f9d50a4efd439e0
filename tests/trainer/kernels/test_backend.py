from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from rundir import UserError
from trainer.kernels import choose_backend
from trainer.kernels.backend import _toolchain_fault, age_fault

WEIGHTS = [torch.zeros(3)]


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def pretend_triton(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    spec = importlib.util.find_spec("json") if installed else None
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: spec)


@pytest.mark.parametrize("installed", [True, False])
def test_auto_is_torch_on_a_cpu(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    pretend_triton(monkeypatch, installed=installed)
    assert choose_backend("auto", WEIGHTS) == "torch"
    assert choose_backend("torch", WEIGHTS) == "torch"


def test_auto_leaves_the_interpreter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_triton(monkeypatch, installed=True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend("auto", WEIGHTS) == "torch"
    assert choose_backend("triton", WEIGHTS) == "triton"


def test_triton_without_its_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_triton(monkeypatch, installed=False)
    with pytest.raises(UserError) as caught:
        choose_backend("triton", WEIGHTS)
    assert str(caught.value) == (
        "backend = 'triton'; must be auto or torch: Triton is not installed here; it comes with "
        "the extra optsweep[triton]"
    )


def test_triton_without_a_cuda_device_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_triton(monkeypatch, installed=True)
    with pytest.raises(UserError) as caught:
        choose_backend("triton", WEIGHTS)
    assert str(caught.value) == (
        "backend = 'triton'; must be auto or torch: the weights lie on cpu, and Triton needs a "
        "CUDA device"
    )
    assert caught.value.exit_code == 2


def test_triton_without_weights_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_triton(monkeypatch, installed=True)
    with pytest.raises(UserError, match="auto or torch: there are no weights to step"):
        choose_backend("triton", [])
    assert choose_backend("auto", []) == "torch"


def test_triton_on_other_than_fp32_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_triton(monkeypatch, installed=True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UserError, match="the kernel works on fp32 weights only"):
        choose_backend("triton", [torch.zeros(3, dtype=torch.float64)])


def test_triton_on_a_weight_with_gaps_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_triton(monkeypatch, installed=True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend("triton", [torch.zeros(3, 4).t()]) == "triton"
    with pytest.raises(UserError, match="the kernel works on weights without gaps in memory only"):
        choose_backend("triton", [torch.zeros(3, 4)[:, :2]])


def test_a_machine_without_a_compiler_is_told_from_one_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Triton comes with torch; that it is installed says nothing of what it needs to launch."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _toolchain_fault() == (
        "Triton needs a C compiler, and there is no gcc, no clang, and no CC in the environment"
    )
    monkeypatch.setenv("CC", "cc")
    if torch.cuda.is_available():
        pytest.skip("with a CUDA device nothing is missing then, see tests/gpu/test_device.py")
    pytest.importorskip("triton")
    said = _toolchain_fault()
    assert said is not None
    assert said.startswith("Triton cannot build what launches its kernels: RuntimeError: 0 active")


def test_a_gpu_that_triton_has_no_kernels_for_is_told_from_one_that_it_has() -> None:
    said = "Triton needs compute capability 7.0 or newer, and this GPU has 6.1"
    assert age_fault((6, 1)) == said
    assert age_fault((7, 0)) is None
    assert age_fault((12, 0)) is None
