"""Planning: 10,000 runs submitted to a real SLURM, and ours beside hydra-submitit-launcher.

Both sides expand the same grid on the same config tree, in commands of their own that take turns.
A run's cost is the wall time from the start of the command to its last call of sbatch, which only
prints a job id. Theirs is linear in the number of runs (each is composed, then pickled), so that it
is measured at two small numbers and continued to ours.

    python benchmarks/plan.py [--runs 10000]
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from report import ROOT, Report, workplace

from sweeps.planning.plan import Plan
from sweeps.records.freeze import CODE_DIR
from tests.slurm.conftest import Lab, start_lab

RATIO, PLANNED_S, RSS_MB = 50.0, 15.0, 500.0
OURS, THEIRS = 1000, (20, 120)
"""Runs that the ratio is measured with."""

SBATCH = """#!/bin/sh
echo "Submitted batch job 1"
date +%s.%N >>'{times}'
"""


def grid(runs: int) -> list[str]:
    """Return overrides that expand to ``runs`` runs, a multiple of 20."""
    return [
        "optimizer=adamw,muon",
        "optimizer.optimizer_params.lr=" + ",".join(f"{i}e-4" for i in range(1, 11)),
        f"seed=range({runs // 20})",
        "model=nano",
        "training.training_params.max_steps=10",
    ]


def ours(runs: int, sweep: str) -> list[str]:
    """Return the command that submits a sweep by our launcher."""
    chosen = ["cluster=slurm", f"paths.sweep={sweep}"]
    return [sys.executable, str(ROOT / "launch.py"), "-m", *chosen, *grid(runs)]


def theirs(runs: int, sweep: str) -> list[str]:
    """Return the command that submits a sweep by Hydra's sweeper and hydra-submitit-launcher."""
    chosen = ["hydra/sweeper=basic", "hydra/launcher=submitit_slurm", f"hydra.sweep.dir={sweep}"]
    return [sys.executable, str(ROOT / "benchmarks" / "peer.py"), "-m", *chosen, *grid(runs)]


def until_sbatch(command: Sequence[str], calls: int, place: Path, lab: Lab) -> float:
    """Return seconds from a command's start to its ``calls``-th sbatch; end it after that."""
    times = place / f"times.{time.monotonic_ns()}"
    fakes = place / "bin"
    fakes.mkdir(exist_ok=True)
    (fakes / "sbatch").write_text(SBATCH.format(times=times))
    (fakes / "sbatch").chmod(0o755)
    path = f"{fakes}{os.pathsep}{lab.env['PATH']}"
    env = {**lab.env, "PYTHONPATH": str(ROOT), "PATH": path}
    began = time.time()
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=place, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            while not times.exists() or len(times.read_text().splitlines()) < calls:
                if process.poll() not in {None, 0}:
                    raise SystemExit((place / "log").read_text())
                time.sleep(0.01)
        finally:
            if process.poll() is None:  # theirs waits for its jobs to end
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return float(times.read_text().splitlines()[calls - 1]) - began


def measured(command: Sequence[str], place: Path, lab: Lab) -> tuple[float, float, float]:
    """Return seconds, CPU seconds and peak memory in MB of a command that must succeed."""
    began = time.perf_counter()
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=place, env={**lab.env, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit((place / "log").read_text())
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def queued(lab: Lab) -> int:
    """Return how many array elements wait in the queue."""
    lines = lab.run("squeue", "--noheader", "--array", "--format=%i").stdout.split()
    return len([line for line in lines if re.fullmatch(r"\d+_\d+", line)])


def written(home: Path) -> int:
    """Return the bytes that a sweep's own files and directories take on disk, without its code."""
    blocks = 0
    for folder, folders, files in os.walk(home):
        if Path(folder) == home:
            folders.remove(CODE_DIR)
        blocks += sum(os.lstat(f"{folder}/{name}").st_blocks for name in (*files, *folders))
    return blocks * 512


def large(report: Report, place: Path, lab: Lab, runs: int) -> None:
    """Submit many runs to the real SLURM, in a partition that starts none."""
    lab.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    seconds, cpu, memory = measured(ours(runs, "large"), place, lab)
    plan = Plan.read(place / "multirun" / "large")
    waiting = queued(lab)
    if plan is None or len(plan.runs) != runs or waiting != runs:
        raise SystemExit(f"{waiting} of {runs} runs are queued; {(place / 'log').read_text()}")
    size = (plan.home / "plan.json").stat().st_size
    report.add(f"submit_{runs}_s", seconds, "the whole command, once", most=PLANNED_S)
    report.add(f"submit_{runs}_cpu_s", cpu, "its processor time")
    report.add("peak_rss_mb", memory, "of that command and its children", most=RSS_MB)
    report.add("plan_bytes_per_run", size / runs, "plan.json")
    kept = written(plan.home)
    report.add("sweep_bytes_per_run", kept / runs, "on disk below .sweep, without the frozen code")
    report.add("plan_read_s", _seconds(lambda: Plan.read(plan.root)), "every worker's start")
    seconds, *_ = measured(ours(runs, "large"), place, lab)
    report.add("launch_again_s", seconds, "the same command again: nothing to submit")


def ratio(report: Report, place: Path, lab: Lab) -> None:
    """Measure a run's cost on both sides, taking turns."""
    few, many = THEIRS
    short = until_sbatch(theirs(few, "theirs-few"), 1, place, lab)
    we = until_sbatch(ours(OURS, "ours"), 1, place, lab)
    long = until_sbatch(theirs(many, "theirs-many"), 1, place, lab)
    again = until_sbatch(ours(OURS, "ours-again"), 1, place, lab)
    a_run = (long - short) / (many - few)
    they = short + a_run * (OURS - few)
    us = max(we, again)
    report.add("theirs_ms_a_run", they / OURS * 1e3, f"{few} and {many} runs, continued to {OURS}")
    report.add("ours_ms_a_run", us / OURS * 1e3, f"{OURS} runs, the slower of two")
    report.add("ratio", they / us, "theirs / ours, both with their start-up", least=RATIO)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="a multiple of 20")
    runs: int = parser.parse_args().runs
    report = Report("plan")
    with workplace() as place, start_lab(accounting=False) as lab:
        ratio(report, place, lab)
        large(report, place, lab, runs)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
