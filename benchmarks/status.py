"""What following costs: status of 10,000 runs, start-up, and what older sweeps add to it.

The peer of ``status`` reads every tenth run's status through OmegaConf, the way a Hydra user reads
run directories, and is scaled up.

    python benchmarks/status.py [--runs 10000] [--old-sweeps 3000] [--old-files 100]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

from report import ROOT, Report, environment, workplace

from rundir import State, Status
from rundir.files import LOG_FILE, METRICS_FILE, RUN_FILE, write_status
from sweeps.planning.plan import Plan, PlannedRun
from sweeps.records import claims, ledger
from sweeps.records.ledger import LOCAL, Share, Submission
from sweeps.records.owners import Owner, myself

REPEATS = 5
STATUS_S, START_S, AGE_RATIO = 2.0, 1.5, 1.25

SLURM = {
    "sbatch": "echo Submitted batch job 7",
    "squeue": "true",
    "srun": "true",
    "scontrol": "printf 'MaxArraySize = 1001\\nMaxJobCount = 10000\\n'",
}
"""Stands for a cluster that takes every job at once, so that what is measured is our own work."""

TEMPLATE = ("launch.py", "-m", "paths.sweep=template", "seed=0,1", "dry_run=false")
"""A real sweep of two runs, whose plan gives the large one its form."""


def once(command: Sequence[str], cwd: Path, accepted: Sequence[int] = (0,)) -> float:
    """Return the wall-clock seconds of one run."""
    env = {**environment(), "PATH": f"{cwd}/bin{os.pathsep}{os.environ['PATH']}"}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in accepted:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return time.perf_counter() - began


def seconds(command: Sequence[str], cwd: Path, accepted: Sequence[int] = (0,)) -> float:
    """Return the least wall-clock seconds of REPEATS runs: other load can only add to it."""
    return min(once(command, cwd, accepted) for _ in range(REPEATS))


def python(*arguments: str) -> list[str]:
    """Return a command of this interpreter, with paths of the project's scripts made absolute."""
    first = str(ROOT / arguments[0]) if arguments[0].endswith(".py") else arguments[0]
    return [sys.executable, first, *arguments[1:]]


def template(place: Path) -> Plan:
    """Plan a real sweep and return its plan; nothing is trained."""
    task = ("task=toy.run", "check=toy.check", "training.training_params.max_steps=3")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "sweeps")])
    subprocess.run(
        python(*TEMPLATE, *task),
        cwd=place,
        env={**environment(), "PYTHONPATH": path},
        check=True,
        capture_output=True,
    )
    plan = Plan.read(place / "multirun" / "template")
    if plan is None:
        raise SystemExit("the template sweep left no plan")
    return plan


def write_sweep(place: Path, form: Plan, name: str, count: int) -> Plan:
    """Write a sweep of which 94 % are completed, 4 % failed, 1 % at work and 1 % waiting.

    Every claim, status and ledger entry is written by the engine's own functions.
    """
    first = form.runs[0]
    group = str(Path(first.directory).parent)
    runs = [
        replace(
            first,
            index=index,
            name=f"seed-{index}",
            directory=f"{group}/seed-{index}",
            signature=f"{index:064x}",
            overrides=(*first.overrides[:-1], f"seed={index}"),
            varying={"seed": index},
        )
        for index in range(count)
    ]
    plan = Plan(name, place / "multirun" / name, runs, form.bases)
    plan.write()
    owner = myself()
    asked = tuple((run.index, 1) for run in runs)
    submission = Submission(
        "bench", Share(LOCAL, asked, 8, drain=True, threads=1), "code", str(place)
    )
    submission.write(plan.home)
    ledger.record(plan.home, "intent", submission.id)
    ledger.record(plan.home, ledger.TAKEN, submission.id, owners=[asdict(owner)])
    with patch("os.fsync"):  # 20,000 files to prepare, none to keep
        for run in runs:
            _write_run(plan, run, owner)
    return plan


def _write_run(plan: Plan, run: PlannedRun, owner: Owner) -> None:
    """Write what a run leaves behind; the last of a hundred has not begun."""
    kind, now = run.index % 100, time.time()
    if kind == 99:
        return
    directory = plan.directory(run)
    directory.mkdir(parents=True)
    for file in (RUN_FILE, METRICS_FILE, LOG_FILE):
        (directory / file).write_text("{}\n")
    state = State.RUNNING if kind == 98 else State.FAILED if kind > 93 else State.COMPLETED
    reason = f"RuntimeError: broken in way {kind}" if state is State.FAILED else None
    status = Status(state, 1, "host", pid=1, step=50, total_steps=100, reason=reason)
    figures = {"loss": 3.2, "tokens_per_second": 1e5}
    status = replace(status, figures=figures, started_at=now - 60, updated_at=now)
    write_status(directory, replace(status, ended_at=None if kind == 98 else now))
    claims.claim(plan.claims, str(run.index), 1, owner)


def write_history(place: Path, sweeps: int, files: int) -> None:
    """Write older sweeps beside: a plan, and many files in run directories."""
    plan = (place / "multirun" / "template" / ".sweep" / "plan.json").read_bytes()
    for number in range(sweeps):
        root = place / "multirun" / f"old-{number}"
        (root / ".sweep").mkdir(parents=True)
        (root / ".sweep" / "plan.json").write_bytes(plan)
        (root / "runs").mkdir()
        for file in range(files):
            os.close(os.open(root / "runs" / f"{file}", os.O_CREAT | os.O_WRONLY))


def install_slurm(place: Path) -> None:
    """Put the stand-ins for SLURM's commands into ``bin``, where :func:`once` finds them."""
    (place / "bin").mkdir()
    for name, line in SLURM.items():
        (place / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (place / "bin" / name).chmod(0o755)


def submission(place: Path) -> float:
    """Return the seconds that submitting a sweep of three runs takes, which is removed again."""
    words = ("launch.py", "-m", "paths.sweep=mine", "seed=1,2,3", "cluster=slurm")
    took = once(python(*words), place)
    if not list((place / "multirun" / "mine" / ".sweep" / "submissions").glob("*/7_submission.sh")):
        raise SystemExit("the measured submission has handed nothing over")
    shutil.rmtree(place / "multirun" / "mine")
    return took


def by_omegaconf(plan: Plan) -> float:
    """Return the seconds that reading every status through OmegaConf takes, from every tenth."""
    from omegaconf import OmegaConf

    paths = [plan.directory(run) / "status.json" for run in plan.runs[::10]]
    began = time.perf_counter()
    for path in paths:
        if path.exists():
            OmegaConf.load(path)
    return 10 * (time.perf_counter() - began)


def measure_age(report: Report, place: Path, old: tuple[int, int]) -> None:
    """Measure small sweeps without and with the history of others, in turns."""
    places = [place / "young", place / "old"]
    for there in places:
        there.mkdir()
        write_sweep(there, template(there), "small", 100)
    write_history(places[1], *old)
    (places[1] / "multirun" / "small" / ".sweep" / "plan.json").touch()
    for there in places:
        install_slurm(there)
    measured: dict[str, Callable[[Path], float]] = {
        "status": lambda there: once(python("-m", "sweeps", "status", "small"), there, (0, 1)),
        "status_of_latest": lambda there: once(python("-m", "sweeps", "status"), there, (0, 1)),
        "submission": submission,
    }
    for name, measure in measured.items():
        rounds = [[measure(there) for there in places] for _ in range(REPEATS)]
        young, aged = (min(times) for times in zip(*rounds, strict=True))
        count = old[0] * old[1]
        told = f"{young:.2f} s alone, {aged:.2f} s beside {count:,} old files; least of {REPEATS}"
        report.add(f"{name}_age_ratio", aged / young, told, most=AGE_RATIO)


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--old-sweeps", type=int, default=3_000)
    parser.add_argument("--old-files", type=int, default=100)
    chosen = parser.parse_args()
    report = Report("status")
    with workplace() as place:
        form = template(place)
        plan = write_sweep(place, form, "large", chosen.runs)
        least = f"least of {REPEATS}"
        status = python("-m", "sweeps", "status", "large")
        ours = seconds(status, place, (1,))
        told = f"status of {chosen.runs:,} runs, interpreter start included; {least}"
        report.add("status_s", ours, told, most=STATUS_S)
        full = seconds([*status, "--json"], place, (1,))
        report.add("status_json_s", full, f"the same with --json: every run; {least}")
        peer = by_omegaconf(plan)
        report.add("peer_omegaconf_s", peer, "peer: every tenth status by OmegaConf.load, × 10")
        report.add("omegaconf_ratio", peer / ours, "peer / status", least=2)
        for name, command in (
            ("start_sweeps_s", python("-m", "sweeps", "--help")),
            ("start_launch_s", python("launch.py", "--help")),
        ):
            report.add(name, seconds(command, place), f"start-up; {least}", most=START_S)
        shutil.rmtree(plan.root)
        measure_age(report, place, (chosen.old_sweeps, chosen.old_files))
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
