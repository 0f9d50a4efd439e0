from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
READS_AND_WRITES: dict[str, tuple[int, int]] = {
    "adam": (4, 3),
    "adamw": (4, 3),
    "adamw-lr-in-memory": (4, 3),
    "nadam": (4, 3),
    "nadamw": (4, 3),
    "lion": (3, 2),
    "sign": (3, 2),
    "sign-nesterov": (3, 2),
    "sign-averages": (2, 1),
    "sign-nesterov-averages": (2, 1),
    "sign-apply": (2, 1),
    "sign-nesterov-apply": (3, 1),
    "momo-adam-averages": (4, 2),
    "momo-adam-apply": (3, 1),
    "squares": (1, 0),
}
"""Tensors that a kernel reads and writes 128 bits at a time, each twice a thread and block."""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: pip install optsweep[triton]",
)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_kernel_compiles_to_128_bit_accesses_without_spills(
    capability: int, tmp_path: Path
) -> None:
    command = [sys.executable, HERE / "compile_kernels.py", str(capability), tmp_path]
    environment = {
        "PYTHONPATH": str(ROOT),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "TRITON_INTERPRET": "0",
    }
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kernels = {path.stem: path.read_text() for path in tmp_path.glob("*.ptx")}
    assert set(READS_AND_WRITES) <= set(kernels)
    for name, ptx in kernels.items():
        assert f".target sm_{capability}" in ptx, name
        assert ".local" not in ptx, name
        told = (tmp_path / f"{name}.txt").read_text()
        assert "0 bytes spill stores, 0 bytes spill loads" in told, name
    for name, (reads, writes) in READS_AND_WRITES.items():
        assert kernels[name].count("ld.global.v4.b32") == 2 * reads, name
        assert kernels[name].count("st.global.v4.b32") == 2 * writes, name
