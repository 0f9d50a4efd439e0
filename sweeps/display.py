"""What the user sees: tables on stdout, progress and hints on stderr."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rundir import DONE, ENDED, State, Status
from rundir.wording import count_of, duration
from sweeps.clusters import Cluster
from sweeps.ledger import Submission
from sweeps.overrides import brief
from sweeps.plan import Plan
from sweeps.states import RunState

LINES_EVERY_S = 10.0
"""Seconds between progress lines where stderr is not a terminal."""

_COLOURS = {
    State.COMPLETED: "green",
    State.RUNNING: "cyan",
    State.PENDING: "yellow",
    State.PLANNED: "dim",
}

_LOG_WIDTH = 160
"""Columns where the output is a file or a pipe."""

out = Console(width=None if sys.stdout.isatty() else _LOG_WIDTH, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


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


def watch(
    plan: Plan, survey: Callable[[], list[RunState]], pauses: Iterable[float]
) -> list[RunState]:
    """Show the runs until nothing is pending or running any more; return their last states.

    Args:
        plan: the sweep.
        survey: asks for the states.
        pauses: seconds between two questions; endless.
    """
    with _LiveRuns(plan) if err.is_terminal else _Lines(plan) as printer:
        for pause in pauses:
            asked = survey()
            printer.show(asked)
            if all(s.state not in (State.PENDING, State.RUNNING) for s in asked):
                break
            time.sleep(pause)
    return asked


class _LiveRuns:
    """A table on a terminal, redrawn in place: running runs, then counts."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._live = Live(console=err, auto_refresh=False)

    def __enter__(self) -> _LiveRuns:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, asked: Sequence[RunState]) -> None:
        """Redraw."""
        room = max(4, (err.height or 24) - 4)
        first = [s for s in asked if s.state is State.RUNNING]
        rest = [s for s in asked if s.state is not State.RUNNING]
        table = run_table(self._plan, (first + rest)[:room] if len(asked) > room else asked)
        table.caption = summary(asked)
        self._live.update(table, refresh=True)


class _Lines:
    """Lines in a log: each change of state, and every running run every few seconds."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._states: dict[int, State] = {}
        self._printed_at = 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, asked: Sequence[RunState]) -> None:
        """Print what is new."""
        due = time.monotonic() - self._printed_at >= LINES_EVERY_S
        for state in asked:
            changed = self._states.get(state.run.index) is not state.state
            started = state.state is State.RUNNING and state.status is not None
            if (changed and (started or state.state in ENDED)) or (due and started):
                line = progress_line(state.state, state.status)
                err.print(f"{self._plan.labels[state.run.index]:<36} {line}", markup=False)
                self._states[state.run.index] = state.state
        if due:
            self._printed_at = time.monotonic()


def progress_line(state: State, status: Status | None) -> str:
    """Return one line of how far a run is: state, step, loss, speed, time left."""
    if status is None:
        return str(state)
    cells = _progress_cells(status)
    ended = "" if state is State.RUNNING else f"  in {duration(_elapsed(status))}"
    left = f"  {cells[3]} left" if cells[3] and state is State.RUNNING else ""
    loss = f"  loss {cells[1]}" if cells[1] else ""
    speed = f"  {cells[2]} tokens/s" if cells[2] else ""
    return f"{state!s:<9} {cells[0]}{loss}{speed}{left}{ended}"


def run_table(plan: Plan, asked: Sequence[RunState]) -> Table:
    """Return the table of runs for ``status``, ``watch`` and a followed local sweep."""
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    table.add_column("#", justify="right", style="dim")
    table.add_column("run", no_wrap=True)
    table.add_column("state")
    for name in ("step", "loss", "tokens/s", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("where / why", overflow="fold")
    for state in asked:
        cells = _progress_cells(state.status) if state.status else ("", "", "", "")
        why = state.reason or _where(state)
        colour = _COLOURS.get(state.state, "red")
        run, word = Text(plan.labels[state.run.index]), Text(str(state.state), style=colour)
        table.add_row(str(state.run.index), run, word, *cells, Text(why or ""))
    return table


def _progress_cells(status: Status) -> tuple[str, str, str, str]:
    figures = status.figures or {}
    step = f"{status.step}/{status.total_steps}" if status.step is not None else "starting"
    loss = f"{figures['loss']:.4f}" if "loss" in figures else ""
    speed = f"{figures['tokens_per_second']:,.0f}" if "tokens_per_second" in figures else ""
    left = duration(status.seconds_left) if status.seconds_left is not None else ""
    return step, loss, speed, left if status.state is State.RUNNING else ""


def _where(state: RunState) -> str | None:
    if state.state in DONE:
        return f"in {duration(_elapsed(state.status))}" if state.status else None
    host = state.status.host if state.status else None
    return ", ".join(part for part in (host, state.job and f"job {state.job}") if part) or None


def _elapsed(status: Status | None) -> float:
    if status is None or status.started_at is None:
        return 0.0
    return (status.ended_at or time.time()) - status.started_at


def by_reason(asked: Sequence[RunState]) -> dict[tuple[State, str], list[RunState]]:
    """Group the runs that have a reason to be where they are, the largest group first."""
    groups: dict[tuple[State, str], list[RunState]] = {}
    for state in asked:
        if state.reason:
            groups.setdefault((state.state, state.reason), []).append(state)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def print_tail(log: Path, lines: int = 5) -> None:
    """Print the last lines of a log to stderr, indented."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return
    for line in text.splitlines()[-lines:]:
        err.print(f"    {line}", markup=False)


def summary(asked: Sequence[RunState]) -> str:
    """Return the counts of states: ``8 runs: 6 completed, 2 running``."""
    found = Counter(state.state for state in asked)
    counts = ", ".join(f"{found[state]} {state}" for state in State if found[state])
    return f"{count_of(len(asked), 'run')}: {counts}"


class OneRun:
    """Progress of a single run in the foreground: one line, redrawn on a terminal."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._printed_at = 0.0

    def __call__(self, status: Status) -> None:
        """Show a new status."""
        line = f"{self.name}  {progress_line(status.state, status)}"
        if err.is_terminal:
            sys.stderr.write("\r\x1b[2K" + line[: err.width - 1])
            sys.stderr.write("\n" if status.state in ENDED else "")
            sys.stderr.flush()
        elif status.state in ENDED or time.monotonic() - self._printed_at >= LINES_EVERY_S:
            self._printed_at = time.monotonic()
            err.print(line, markup=False)
