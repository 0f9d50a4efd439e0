"""The loop on a real GPU: fp16's scale, equal bits, MFU, memory, the profiler and torch.compile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trainer
from rundir import Run, UserError
from rundir.files import METRICS_FILE, iter_metrics

pytestmark = pytest.mark.usefixtures("cuda")

SIZE = {"n_embd": 128, "n_layer": 2, "n_head": 4, "vocab_size": 256}


PROGRAM = """
import json, sys, trainer
from rundir import Run
with Run(sys.argv[1], threads=4) as run:
    trainer.run(json.loads(sys.argv[2]), run)
"""


def config_of(**params: Any) -> dict[str, Any]:
    return {
        "model": {"name": "probe", "config": SIZE},
        "data": {"dataset": {"name": "shakespeare"}},
        "training": {
            "training_params": {
                "tokens_processed": 4096,
                "val_tokens_processed": 4096,
                "batch_size": 16,
                "context_length": 128,
                "max_steps": 40,
                **params,
            }
        },
        "optimizer": {"optimizer_params": {"name": "adamw", "lr": 0.003}},
        "logging": {"logging_params": {"log_step": 1}},
        "device": "cuda",
    }


def recorded(path: Path) -> list[dict[str, Any]]:
    return [record for record in iter_metrics(path / METRICS_FILE) if record["stream"] == "train"]


def records(path: Path, **params: Any) -> list[dict[str, Any]]:
    """Train forty steps and return the records of the training loss."""
    with Run(path, threads=4) as run:
        trainer.run(config_of(**params), run)
    return recorded(path)


def records_of_a_process(
    path: Path, *, optimizer: str = "adamw", compiler: bool = True, **params: Any
) -> list[dict[str, Any]]:
    """As :func:`records`, by a process that has not touched the device before."""
    absent = {"CUBLAS_WORKSPACE_CONFIG"} | (set() if compiler else {"CC"})
    env = {key: each for key, each in os.environ.items() if key not in absent}
    if not compiler:
        env["PATH"] = str(path)  # without one, /usr/bin is looked through
    config = config_of(**params)
    config["optimizer"]["optimizer_params"]["name"] = optimizer
    path_of_ours = (str(Path(trainer.__file__).parents[1]), env.get("PYTHONPATH", ""))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), json.dumps(config)],
        env={**env, "PYTHONPATH": os.pathsep.join(path_of_ours)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return recorded(path)


def losses(found: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in found]


def test_half_precisions_learn_as_float32_does(tmp_path: Path) -> None:
    single = records(tmp_path / "single", mixed_precision="float32")
    for kind in ("bfloat16", "float16"):
        half = records(tmp_path / kind, mixed_precision=kind)
        assert losses(half)[-1] == pytest.approx(losses(single)[-1], rel=0.03)
    assert half[-1]["loss_scale"] >= 1024
    assert single[-1]["loss"] < 0.8 * single[0]["loss"]


def test_a_process_that_has_not_touched_the_device_trains_on_it(tmp_path: Path) -> None:
    found = records_of_a_process(tmp_path, max_steps=2)
    assert found[-1]["memory"] > 10e6


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "soap"])
def test_a_machine_without_a_compiler_trains_by_torch(tmp_path: Path, optimizer: str) -> None:
    found = records_of_a_process(
        tmp_path, optimizer=optimizer, compiler=False, compile=True, max_steps=3
    )
    assert len(found) == 3


def test_deterministic_runs_are_equal_to_the_bit(tmp_path: Path) -> None:
    first, second = (records_of_a_process(tmp_path / name, deterministic=True) for name in "ab")
    assert losses(first) == losses(second)


def test_deterministic_too_late_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(UserError, match="this process has used CUDA already"):
        records(tmp_path, deterministic=True)


def test_memory_and_mfu_are_those_of_the_device(tmp_path: Path) -> None:
    import torch

    from trainer.compute.throughput import peak_flops

    found = records(tmp_path)
    assert 10e6 < found[-1]["memory"] < torch.cuda.get_device_properties(0).total_memory
    if peak_flops(torch.device("cuda")) is None:
        assert "mfu" not in found[-1]
    else:
        assert 0 < found[-1]["mfu"] < 1


def test_recomputed_activations_take_less_memory(tmp_path: Path) -> None:
    kept = records(tmp_path / "a", mixed_precision="float32")
    again = records(tmp_path / "b", mixed_precision="float32", activation_checkpointing=True)
    assert losses(again) == pytest.approx(losses(kept), rel=1e-4)
    assert again[-1]["memory"] < kept[-1]["memory"]


def test_the_trace_holds_kernels(tmp_path: Path) -> None:
    records(tmp_path, profile_steps=2)
    assert '"cat": "kernel"' in (tmp_path / "profile" / "trace.json").read_text()


@pytest.mark.filterwarnings("ignore")  # what torch's compiler warns of is its own
def test_a_compiled_model_learns_the_same(tmp_path: Path) -> None:
    eager = records(tmp_path / "a", mixed_precision="float32")
    compiled = records(tmp_path / "b", mixed_precision="float32", compile=True)
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-2)
