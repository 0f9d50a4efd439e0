"""A sweep as its files tell of it, written by the engine's own functions; nothing runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rundir import State, Status
from rundir.files import LOG_FILE, write_status
from sweeps.planning.plan import Plan, PlanBase, PlannedRun
from sweeps.records import claims, ledger
from sweeps.records.ledger import LOCAL, SLURM, Share, Submission
from sweeps.records.owners import Owner, myself

DEAD = Owner(os.uname().nodename, "another boot", 1, 1)
"""A process that is surely gone: of another boot of this machine."""


@dataclass
class Sweep:
    """A sweep of seeds under ``multirun/`` of a test's directory."""

    plan: Plan

    def record(self, index: int, state: State, attempt: int = 1, **more: Any) -> None:
        """Write the claim and the record of an attempt; alive is this process, or nobody."""
        run = self.plan.runs[index]
        owner = more.pop("owner", myself() if state is State.RUNNING else DEAD)
        claims.claim(self.plan.claims, str(index), attempt, owner)
        directory = self.plan.directory(run)
        directory.mkdir(parents=True, exist_ok=True)
        log = more.pop("log", None)
        if log is not None:
            (directory / LOG_FILE).write_text(log)
        now = time.time()
        times = {"started_at": now - 60, "updated_at": now} | (
            {} if state is State.RUNNING else {"ended_at": now}
        )
        write_status(directory, Status(state, attempt, os.uname().nodename, **{**times, **more}))

    def hand_over(
        self,
        backend: str = SLURM,
        job: str | None = "12",
        name: str = "abc",
        *,
        attempt: int = 1,
        answer: str = "job",
        **more: Any,
    ) -> None:
        """Write the ledger of a submission of an attempt at every run, one element a run."""
        runs = tuple((run.index, attempt) for run in self.plan.runs)
        share = Share(backend, runs, len(runs), drain=backend == LOCAL, threads=1)
        submission = Submission(name, share, "hash", str(self.plan.root))
        submission.write(self.plan.home)
        ledger.record(self.plan.home, "intent", name)
        if answer == "job":
            more = {"job": job} if backend == SLURM else {"owners": []}
        ledger.record(self.plan.home, answer, name, **more)


def write_sweep(multirun: Path, name: str, runs: int) -> Sweep:
    base = PlanBase((), "seed: 0", "{}")
    planned = [
        PlannedRun(i, f"seed-{i}", f"m/d/o/seed-{i}", f"{i:064}", (f"seed={i}",), {"seed": i}, 0)
        for i in range(runs)
    ]
    plan = Plan(name, multirun / name, planned, [base])
    plan.write()
    return Sweep(plan)


@pytest.fixture
def make_sweep(tmp_path, monkeypatch) -> Callable[..., Sweep]:
    """Make sweeps in a directory of the test's own, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return lambda name="s", runs=4: write_sweep(Path("multirun"), name, runs)


@pytest.fixture(scope="session")
def sweep_in() -> Callable[[Path], Sweep]:
    """Make a sweep of one run in a directory."""
    return lambda multirun: write_sweep(multirun, "s", 1)


@pytest.fixture(scope="session")
def dead() -> Owner:
    """A process that is surely gone."""
    return DEAD


@pytest.fixture
def sweeps_command(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run ``python -m sweeps …`` in this process; return exit code, stdout and stderr."""
    from sweeps.__main__ import main

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def json_of(sweeps_command) -> Callable[..., Any]:
    """Return what a command prints with --json."""
    return lambda *arguments: json.loads(sweeps_command(*arguments, "--json")[1])
