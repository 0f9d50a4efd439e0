from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def test_the_kernel_agrees_with_fp64_in_tritons_interpreter(in_the_interpreter: Any) -> None:
    in_the_interpreter("interpreted_cholesky.py")


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernel_keeps_its_matrix_in_registers(
    capability: int, tmp_path: Path, with_triton: Any
) -> None:
    script = HERE / "compile_cholesky.py"
    cache = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    done = with_triton(script, capability, **cache)
    assert done.returncode == 0, done.stderr
    assert f".target sm_{capability}" in done.stdout
    assert "0 bytes spill stores, 0 bytes spill loads" in done.stdout
    assert ".local" not in done.stdout
