"""torch.compile on a CPU, in processes of their own: what is compiled stays for the next run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import trainer

Mapping = dict[str, Any]
Say = Callable[..., list[list[str]]]


@pytest.fixture
def say(tmp_path: Path, ports: Iterator[str]) -> Say:
    """Return a function that runs a program on so many ranks, and gives the words of each."""

    def run(program: str, *arguments: str, ranks: int = 1) -> list[list[str]]:
        # The second: not to try out, by compiling, which vector instructions there are.
        env = {**os.environ, "OPTSWEEP_CACHE": str(tmp_path), "TORCHINDUCTOR_VEC_ISA_OK": "1"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": next(ports)}
        env.pop("TORCHINDUCTOR_CACHE_DIR", None)
        started = [
            subprocess.Popen(
                [sys.executable, "-c", program, *arguments],
                cwd=Path(trainer.__file__).parents[1],
                env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        try:
            said = [process.communicate(timeout=240) for process in started]
        finally:
            for process in started:
                process.kill()
        assert [process.returncode for process in started] == [0] * ranks, said
        return [out.split() for out, _ in said]

    return run


COMPARED = """
import json, sys, torch
from trainer.config import TrainConfig
from trainer.parallel import Ranks
from trainer.training import Training

config, found = json.loads(sys.argv[1]), []
for compiled in (True, False):
    config["training"]["training_params"]["compile"] = compiled
    training = Training(TrainConfig.from_mapping(config), Ranks(0, 1, torch.device("cpu")))
    batch = next(training._batches.micro_batches(0))
    loss = training._backward(batch, 1)
    found.append([loss, *(weight.grad for weight in training.model.parameters())])
    training.close()
for ours, eager in zip(*found, strict=True):
    torch.testing.assert_close(ours, eager, rtol=0, atol=1e-6)
    assert eager.abs().max() > 1e-5, eager.abs().max()
from torch._dynamo.utils import counters
print(*(counters["inductor"][f"fxgraph_cache_{key}"] for key in ("hit", "miss")))
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_model_has_the_gradients_of_the_plain_one_and_is_compiled_once(
    tiny: Mapping, tmp_path: Path, say: Say
) -> None:
    tiny["model"]["config"]["n_layer"] = 2
    # Of the block, once for both of them, and of the loss; each forward and backward.
    assert say(COMPARED, json.dumps(tiny)) == [["0", "4"]]
    assert any((tmp_path / "compiled").rglob("*.so"))
    assert say(COMPARED, json.dumps(tiny)) == [["4", "0"]]


BUILT = """
import json, os, sys, trainer
from rundir import Run
trainer.preload()
from trainer.config import TrainConfig
from trainer.parallel import joined
from trainer.training import Training

config, rank = TrainConfig.from_mapping(json.loads(sys.argv[1])), int(os.environ["RANK"])
with Run(sys.argv[2], attempt=1, threads=1, rank=rank, world_size=2) as run:
    with joined(run, "cpu") as ranks:
        Training(config, ranks).close()
print(os.environ["TORCHINDUCTOR_CACHE_DIR"])
"""


def test_ranks_share_what_is_compiled_with_other_runs_too(
    tiny: Mapping, tmp_path: Path, say: Say
) -> None:
    tiny["training"]["training_params"]["compile"] = True
    found = say(BUILT, json.dumps(tiny), str(tmp_path / "run"), ranks=2)
    assert found == [[str(tmp_path / "compiled")]] * 2
