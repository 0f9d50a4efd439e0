"""The tables of runs, and the list of what went wrong, for people and for programs."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from rundir import DONE, ENDED, State, Status
from rundir.files import LOG_FILE
from rundir.wording import duration
from sweeps.follow.runstate import RunState
from sweeps.planning.plan import Plan
from sweeps.records import ledger

MOST_ROWS = 50
"""Rows of the table of a larger sweep, unless every row is asked for."""

MOST_FAILURES = 5
"""Distinct failures that are shown with the end of a log."""

_TAIL_BYTES = 16_384

_STATE_WIDTH = max(len(state) for state in State)

_COLOURS = {
    State.COMPLETED: "green",
    State.RUNNING: "cyan",
    State.PENDING: "yellow",
    State.PLANNED: "dim",
}


def counts(asked: Sequence[RunState]) -> dict[str, int]:
    """Return how many runs are in each state, in the order of a run's life."""
    found = Counter(state.state for state in asked)
    return {str(state): found[state] for state in State if found[state]}


def worth_showing(asked: Sequence[RunState], most: int = MOST_ROWS) -> list[RunState]:
    """Return all runs of a small sweep; of a larger one those at work, then those gone wrong."""
    if len(asked) <= most:
        return list(asked)
    running = [s for s in asked if s.state is State.RUNNING]
    bad = [s for s in asked if s.state in ENDED - DONE]
    return (running + bad)[:most]


def run_table(plan: Plan, asked: Sequence[RunState], width: int) -> Table:
    """Return the table of runs for ``status``, ``watch`` and a followed local sweep.

    Where it is wider than ``width`` columns, the least telling of its own are left out; what is
    kept is never cut, and a reason has room for words.
    """
    rows = [_cells(plan, state) for state in asked]
    kept = _fitting(rows, width)
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    for name in kept:
        justify: JustifyMethod = "right" if name in _NUMBERS else "left"
        style = "dim" if name == "#" else ""
        table.add_column(name, justify=justify, style=style, no_wrap=name != _REASON)
    for state, cells in zip(asked, rows, strict=True):
        colours = {"state": _COLOURS.get(state.state, "red")}
        table.add_row(*(Text(cells[name], style=colours.get(name, "")) for name in kept))
    return table


_REASON = "why"
_COLUMNS = ("#", "run", "state", "step", "loss", "tokens/s", "left", "node", _REASON)
_NUMBERS = ("#", "step", "loss", "tokens/s", "left")
_LEAST_TELLING = ("node", "tokens/s", "left", "loss", "step")
"""Columns that a narrow terminal goes without, the first first."""

_REASON_WIDTH = 28
"""Columns that a longer reason is folded into, at least."""


def _cells(plan: Plan, state: RunState) -> dict[str, str]:
    step, loss, speed, left = _progress_cells(state.status) if state.status else ("", "", "", "")
    return {
        "#": str(state.run.index),
        "run": plan.labels[state.run.index],
        "state": str(state.state),
        "step": step,
        "loss": loss,
        "tokens/s": speed,
        "left": left if state.state is State.RUNNING else "",
        "node": state.node or "",
        _REASON: _why(state),
    }


def _fitting(rows: Sequence[dict[str, str]], width: int) -> list[str]:
    """Return the columns that fit side by side, two blanks between them."""
    widths = {name: max(map(len, (name, *(row[name] for row in rows)))) for name in _COLUMNS}
    widths[_REASON] = min(widths[_REASON], _REASON_WIDTH)
    for name in _LEAST_TELLING:
        if sum(widths.values()) + 2 * (len(widths) - 1) <= width:
            break
        del widths[name]
    return list(widths)


def progress_line(state: State, status: Status | None) -> str:
    """Return one line of how far a run is: state, step, loss, speed, time left."""
    if status is None:
        return str(state)
    cells = _progress_cells(status)
    ended = "" if state is State.RUNNING else f"  in {duration(_elapsed(status))}"
    left = f"  {cells[3]} left" if cells[3] and state is State.RUNNING else ""
    loss = f"  loss {cells[1]}" if cells[1] else ""
    speed = f"  {cells[2]} tokens/s" if cells[2] else ""
    return f"{state!s:<{_STATE_WIDTH}} {cells[0]}{loss}{speed}{left}{ended}"


def _progress_cells(status: Status) -> tuple[str, str, str, str]:
    figures = status.figures or {}
    step = f"{status.step}/{status.total_steps}" if status.step is not None else ""
    loss = f"{figures['loss']:.4f}" if "loss" in figures else ""
    speed = f"{figures['tokens_per_second']:,.0f}" if "tokens_per_second" in figures else ""
    left = duration(status.seconds_left) if status.seconds_left is not None else ""
    return step, loss, speed, left if status.state is State.RUNNING else ""


def _why(state: RunState) -> str:
    if state.reason:
        return state.reason
    if state.state is State.PENDING and state.node:  # squeue knows a node only once it starts
        return f"starting (job {state.job})"
    if state.state in DONE:
        return f"in {duration(_elapsed(state.status))}" if state.status else ""
    return f"job {state.job}" if state.job else ""


def _elapsed(status: Status | None) -> float:
    if status is None or status.started_at is None:
        return 0.0
    return (status.ended_at or time.time()) - status.started_at


def by_reason(asked: Sequence[RunState]) -> dict[tuple[State, str], list[RunState]]:
    """Group the runs that have a reason to be where they are, the largest group first.

    Reasons that differ in numbers alone are one; the group bears the first's.
    """
    groups: dict[tuple[State, str], list[RunState]] = {}
    for state in asked:
        if state.reason:
            alike = re.sub(r"\d+", "0", state.reason)
            groups.setdefault((state.state, alike), []).append(state)
    ordered = sorted(groups.values(), key=lambda group: -len(group))
    return {(group[0].state, str(group[0].reason)): group for group in ordered}


def log_of(plan: Plan, state: RunState) -> Path | None:
    """Return the run's log; of an attempt that never began, its worker's; None: there is none."""
    log = plan.directory(state.run) / LOG_FILE
    if state.is_unbegun or not log.exists():
        return worker_log(plan, state) or (log if log.exists() else None)
    return log


def worker_log(plan: Plan, state: RunState) -> Path | None:
    """Return the log of the worker that the run was given to last; None where there is none."""
    for entry in reversed(ledger.entries(plan.home)):
        share = entry.submission.share
        place = next((i for i, (run, _) in enumerate(share.runs) if run == state.run.index), None)
        if place is None:
            continue
        folder = entry.submission.folder(plan.home)
        element = state.job or (None if share.drain else f"{entry.job}_{place}")
        logs = list(folder.glob(f"{element}_*log.out")) if element else []
        # Of several workers that might have taken it, the one that wrote last knows most.
        logs = logs or (list(folder.glob("*_log.out")) if share.drain or not entry.job else [])
        if logs:
            return max(logs, key=lambda path: path.stat().st_mtime)
    return None


def last_lines(log: Path) -> list[str]:
    """Return the last five lines of a log, however long it is; none where it can't be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-5:] or ["(empty)"]


def failures(plan: Plan, surveyed: Sequence[RunState]) -> list[dict[str, Any]]:
    """Return each distinct bad end once: state, reason, count, nodes, a run and its log."""
    bad = [s for s in surveyed if s.is_bad]
    found = []
    for (word, reason), alike in by_reason(bad).items():
        log = log_of(plan, alike[0])
        nodes = Counter(state.node for state in alike if state.node)
        found.append(
            {
                "state": str(word),
                "reason": reason,
                "count": len(alike),
                "nodes": dict(nodes.most_common()),
                "run": alike[0].run.index,
                "log": str(log) if log else None,
            }
        )
    return found
