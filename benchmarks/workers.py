"""What a short run costs in a worker that drains a sweep, beside a fresh interpreter for each.

The task imports what training needs (torch) and logs one number. One worker at a time on one core,
here and on a real SLURM. In a draining worker a run's cost is the time from one run's start to the
next one's; with one element a run it is that too on SLURM, and here the wall time of a worker.

    python benchmarks/workers.py [--runs 20]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from report import ROOT, Report, environment, workplace

from rundir import State, read_status
from sweeps.planning.plan import Plan
from sweeps.records import freeze
from sweeps.records.ledger import Submission
from tests.slurm.conftest import SCRIPTS, start_lab

DRAIN_S, RATIO = 0.5, 5.0
"""Budgets: seconds of a run in a draining worker, and how much more a fresh interpreter takes."""

FRESH = 6
"""Runs with an interpreter of their own."""


def launch(place: Path, env: Mapping[str, str], sweep: str, runs: int, *more: str) -> Plan:
    """Launch a sweep of runs that do nothing; return its plan.

    A local sweep is over then.
    """
    words = ["task=benchmarks.tasks.empty.run", "check=null", f"paths.sweep={sweep}", *more]
    seeds = f"seed=range({runs})"
    command = [sys.executable, str(ROOT / "launch.py"), "-m", *words, seeds]
    done = subprocess.run(
        command, cwd=place, env=dict(env), capture_output=True, text=True, check=False
    )
    plan = Plan.read(place / "multirun" / sweep)
    if done.returncode != 0 or plan is None:
        raise SystemExit(done.stdout + done.stderr)
    return plan


def starts(plan: Plan) -> list[float]:
    """Wait for the sweep's end; return when its runs began, in order, Unix seconds."""
    deadline = time.monotonic() + 600
    while True:
        found = [read_status(plan.directory(run)) for run in plan.runs]
        ended = [s.started_at for s in found if s and s.started_at and s.state is State.COMPLETED]
        if len(ended) == len(plan.runs):
            return sorted(ended)
        if time.monotonic() > deadline:
            raise SystemExit(f"{len(ended)} of {len(plan.runs)} runs completed in 10 minutes")
        time.sleep(0.1)


def period_s(plan: Plan) -> float:
    """Return the mean time from one run's start to the next one's."""
    times = starts(plan)
    return (times[-1] - times[0]) / (len(times) - 1)


def fresh_here_s(plan: Plan, env: Mapping[str, str]) -> float:
    """Return the mean wall time of workers that carry out one run each and end."""
    (folder,) = (plan.home / "submissions").iterdir()
    drained = Submission.read(plan.home, folder.name)
    if drained is None:
        raise SystemExit(f"{folder} holds no submission")
    again = tuple((index, attempt + 1) for index, attempt in drained.share.runs)
    single = replace(drained.share, runs=again, elements=len(again), drain=False)
    submission = replace(drained, id="fresh", share=single)
    submission.write(plan.home)
    code = plan.home / freeze.CODE_DIR / submission.code
    took = []
    for element in range(FRESH):
        words = [str(plan.root), submission.id, "--element", str(element)]
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "sweeps.workers", *words],
            cwd=code,
            env=dict(env),
            check=True,
        )
        took.append(time.perf_counter() - began)
    return sum(took) / len(took)


def main() -> int:
    """Measure, report, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="runs of a draining worker [20]")
    runs = parser.parse_args().runs
    report = Report("workers")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for both sides
    with workplace() as place:
        env = environment(TMPDIR=str(place))
        drained = launch(place, env, "here", runs, "cluster.workers=1")
        here, fresh = period_s(drained), fresh_here_s(drained, env)
        add(report, "local", here, fresh, runs)
        installed = subprocess.run([SCRIPTS / "install.sh", "--check"], check=False)
        if installed.returncode == 0:  # else it has said what is missing
            with start_lab(accounting=False, node_count=1, CPUS="1") as lab:
                env = {**lab.env, "PYTHONPATH": str(ROOT)}
                slurm = ("cluster=slurm", "cluster.timeout_min=10")
                here = period_s(launch(place, env, "drain", runs, *slurm, "cluster.workers=1"))
                fresh = period_s(launch(place, env, "single", FRESH, *slurm))
                add(report, "slurm", here, fresh, runs)
    return report.end()


def add(report: Report, where: str, drain_s: float, fresh_s: float, runs: int) -> None:
    """Add what was measured in one place."""
    report.add(f"{where}_drain_s", drain_s, f"a run in one worker, mean of {runs}", most=DRAIN_S)
    report.add(f"{where}_fresh_s", fresh_s, f"a run with a worker of its own, mean of {FRESH}")
    report.add(f"{where}_ratio", fresh_s / drain_s, "fresh / drain", least=RATIO)


if __name__ == "__main__":
    sys.exit(main())
