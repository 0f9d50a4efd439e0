"""torch.compile on a CPU, in processes of their own: what is compiled stays for the next run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trainer

PROGRAM = """
import sys, torch
from trainer.compute.compilation import compiled
torch.manual_seed(0)
layer = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.SiLU())
x = torch.randn(4, 8)
forward = compiled(layer, torch.device("cpu"))
torch.testing.assert_close(forward(x), layer(x))
from torch._dynamo.utils import counters
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_what_one_run_compiles_another_reads(tmp_path: Path) -> None:
    # The last one: not to try out, by compiling, which vector instructions there are.
    env = {**os.environ, "OPTSWEEP_CACHE": str(tmp_path), "TORCHINDUCTOR_VEC_ISA_OK": "1"}
    env.pop("TORCHINDUCTOR_CACHE_DIR", None)
    found = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=Path(trainer.__file__).parents[1],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert found == [["0", "1"], ["1", "0"]]
    assert any((tmp_path / "compiled").rglob("*.so"))
