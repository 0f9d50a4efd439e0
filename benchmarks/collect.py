"""What collecting costs: 10,000 runs of 200 steps and 6 metrics, all, none and few of them new.

The runs have the files that Hydra and the trainer leave, with the real default config. Each collect
is a command of its own, its interpreter's start included. The peer reads every tenth run's same
facts the way a notebook does: OmegaConf.load of config and overrides, json.loads line by line, a
frame a run, and pandas.concat. Its time a run is compared with that of the first collect.

    python benchmarks/collect.py [--runs 10000] [--steps 200]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import ROOT, Report, environment, workplace

FULL_S, NOTHING_S, METRIC_S, RATIO = 60.0, 1.0, 0.5, 50.0
REPEATS = 5
GROWN = 100
"""Every so many-th run goes on before the third collect."""
NEW_STEPS = 20

COLLECT = ("-m", "analysis", "collect")
LOAD = """
import time
from analysis import history
began = time.perf_counter()
frame = history("train", metrics="loss")
print(time.perf_counter() - began, len(frame))
"""
RUNS = "multirun/bench/gpt/shakespeare/adamw"
_SECONDS = re.compile(r"in ([0-9.]+) s$", re.MULTILINE)


def composed() -> dict[str, Any]:
    """Return the trainer's default config, as Hydra composes it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        container = OmegaConf.to_container(compose("config"), resolve=False)
    if not isinstance(container, dict):
        raise SystemExit("the default config is no mapping")
    return {str(key): value for key, value in container.items()}


def write_runs(place: Path, count: int, steps: int) -> int:
    """Write the run directories; return the bytes of their metrics."""
    from omegaconf import OmegaConf

    config, size = composed(), 0
    config["seed"] = "SEED"
    text = OmegaConf.to_yaml(OmegaConf.create(config))
    for index in range(count):
        directory = place / RUNS / f"seed-{index}"
        (directory / ".hydra").mkdir(parents=True)
        (directory / ".hydra/config.yaml").write_text(text.replace("SEED", str(index)))
        (directory / ".hydra/overrides.yaml").write_text(f"- seed={index}\n")
        record = _record(index, {**config, "seed": index})
        (directory / "run.json").write_text(json.dumps(record, indent=1))
        status = {"version": 1, "state": "completed", "attempt": 1, "step": steps}
        status |= {"total_steps": steps, "started_at": 1e9, "ended_at": 1e9 + steps}
        (directory / "status.json").write_text(json.dumps(status, indent=1))
        (directory / "metrics.jsonl").write_text(metrics(index, 0, steps))
        size += (directory / "metrics.jsonl").stat().st_size
    return size


def _record(index: int, config: dict[str, Any]) -> dict[str, Any]:
    attempt = {"attempt": 1, "host": "node", "started_at": 1e9, "threads": 1, "gpus": []}
    return {
        "version": 1,
        "name": f"seed-{index}",
        "sweep": "bench",
        "index": index,
        "signature": f"{index:064x}",
        "task": "trainer.run",
        "created_at": 1e9,
        "config": config,
        "overrides": [f"seed={index}"],
        "git": {"sha": "0" * 40, "dirty": False, "diff_sha256": None},
        "python": "3.11.7",
        "packages": {"torch": "2.13.0", "numpy": "2.3.0"},
        "attempts": [attempt],
    }


def metrics(index: int, first: int, last: int) -> str:
    """Return lines of six metrics, with as many digits as real ones have."""
    draw = random.Random(index * 1000 + first).random  # noqa: S311 - no secret
    return "".join(
        json.dumps(
            {
                "stream": "train",
                "step": step,
                "t": 1e9 + step * draw(),
                "attempt": 1,
                "loss": 3 + draw(),
                "lr": draw() * 1e-3,
                "grad_norm": draw(),
                "tokens": step * 4096,
                "step_time": draw(),
                "tokens_per_second": 1e5 * draw(),
            }
        )
        + "\n"
        for step in range(first + 1, last + 1)
    )


def command(place: Path, *arguments: str) -> tuple[float, float, str]:
    """Return wall-clock seconds of a command, megabytes of its largest process, what it printed."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *arguments],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
    *printed, peak = (done.stdout + done.stderr).splitlines()
    return seconds, int(peak) / 1024, "\n".join(printed)


_MEASURED = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
code = 0
if __name__ == "__main__":
    try:
        if sys.argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            exec(sys.argv[1])
    except SystemExit as end:
        code = end.code
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    sys.stdout.flush()
    print(max(resource.getrusage(kind).ru_maxrss for kind in kinds), file=sys.stderr)
sys.exit(code)
"""
