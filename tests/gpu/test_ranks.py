"""Ranks over NCCL, as far as one GPU can tell: averaged gradients, cut weights, and words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.usefixtures("cuda")
def test_a_rank_steps_averages_and_saves_over_nccl(tmp_path: Path) -> None:
    path = (str(HERE.parents[1]), os.environ.get("PYTHONPATH", ""))
    done = subprocess.run(
        [sys.executable, str(HERE / "one_rank.py"), "cuda:0", str(tmp_path / "meet")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
