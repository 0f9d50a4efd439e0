from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: pip install optsweep[triton]",
)
HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@needs_triton
def test_the_kernel_agrees_with_fp64_in_tritons_interpreter() -> None:
    tests = str(HERE / "interpreted_cholesky.py")
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", tests, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernel_keeps_its_matrix_in_registers(capability: int, tmp_path: Path) -> None:
    script = str(HERE / "compile_cholesky.py")
    cache = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = run(script, str(capability), **cache)
    assert done.returncode == 0, done.stderr
    assert f".target sm_{capability}" in done.stdout
    assert "0 bytes spill stores, 0 bytes spill loads" in done.stdout
    assert ".local" not in done.stdout
