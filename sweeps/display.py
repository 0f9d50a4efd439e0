"""What the user sees: tables on stdout, progress and hints on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rundir import State
from rundir.wording import count_of
from sweeps.clusters import Cluster
from sweeps.ledger import Submission
from sweeps.overrides import brief
from sweeps.plan import Plan
from sweeps.runtable import by_reason, counts, last_lines
from sweeps.states import RunState

_LOG_WIDTH = 160
"""Columns where the output is a file or a pipe."""

out = Console(width=None if sys.stdout.isatty() else _LOG_WIDTH, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def emit(value: object) -> None:
    """Print what ``--json`` asks for."""
    print(json.dumps(value, indent=1, default=str))  # noqa: T201 - a table for programs


def announce(plan: Plan, asked: Sequence[RunState], wanted: Sequence[RunState]) -> None:
    """Say how many runs there are, how many are settled, and how many start now."""
    again = sum(1 for state in wanted if state.attempts)
    resumed = f", {again} of them again" if again else ""
    err.print(f"sweep {plan.sweep}: {summary(asked)}; {len(wanted) or 'none'} to submit{resumed}")
    for (word, reason), alike in by_reason(wanted).items():
        err.print(f"  {count_of(len(alike), 'run')} {word}: {reason}", markup=False)


def submitted(plan: Plan, count: int, jobs: Sequence[str]) -> None:
    """Say what SLURM took, and how to follow it."""
    if count:
        taken = f"submitted {count_of(count, 'run')} as job {', '.join(jobs)}"
        err.print(f"{taken}; they no longer need this shell")
    err.print(f"  follow   python -m sweeps watch {plan.root}")
    err.print(f"  collect  python -m analysis collect {plan.root}")


def dry_run(
    plan: Plan,
    asked: Sequence[RunState],
    wanted: Sequence[RunState],
    scripts: Sequence[tuple[Cluster, Submission, str]],
) -> None:
    """Print every run with its directory, the scripts, and what they would ask of the cluster."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    keys = list(dict.fromkeys(key for state in asked for key in state.run.varying))
    for name in ["#", *(key.rpartition(".")[2] for key in keys), "now", "directory"]:
        table.add_column(name, overflow="fold")
    for state in asked:
        run = state.run
        values = [Text(brief(run.varying.get(key, ""))) for key in keys]
        fresh = "new" if state.state is State.PLANNED else str(state.state)
        table.add_row(str(run.index), *values, fresh, Text(str(plan.directory(run))))
    out.print(table)
    for _, submission, script in scripts:
        share = submission.share
        workers = count_of(share.elements, "worker")
        out.print(f"\n--- {share.backend}: {workers} ---", markup=False)
        out.print(script, markup=False, soft_wrap=True)
    out.print(_cost(wanted, scripts), markup=False)
    err.print("dry run: nothing was submitted or written")


def _cost(wanted: Sequence[RunState], scripts: Sequence[tuple[Cluster, Submission, str]]) -> str:
    """Return the most that the sweep may use: workers × their time limit."""
    workers = sum(submission.share.elements for _, submission, _ in scripts)
    text = f"{count_of(len(wanted), 'run')} to submit as {count_of(workers, 'worker')}"
    if not all(cluster.timeout_min for cluster, _, _ in scripts) or not scripts:
        return text
    hours: dict[str, float] = {}
    for cluster, submission, _ in scripts:
        amount, unit = (
            (cluster.gpus, "GPU") if cluster.gpus else (cluster.cpus_per_task or 1, "CPU")
        )
        each = submission.share.elements * cluster.timeout_min / 60
        hours[unit] = hours.get(unit, 0) + each * amount
    limits = sorted({cluster.timeout_min for cluster, _, _ in scripts})
    most = " and ".join(f"{amount:g} {unit}-hours" for unit, amount in hours.items())
    limit = ", ".join(str(minutes) for minutes in limits)
    return f"{text} in {count_of(len(scripts), 'array')}; at most {most} (time limit {limit} min)"


def print_tail(log: Path) -> None:
    """Print the last lines of a log to stderr, indented."""
    for line in last_lines(log):
        err.print(f"    {line}", markup=False)


def summary(asked: Sequence[RunState]) -> str:
    """Return the counts of states: ``8 runs: 6 completed, 2 running``."""
    words = ", ".join(f"{count} {word}" for word, count in counts(asked).items())
    return f"{count_of(len(asked), 'run')}: {words}"
