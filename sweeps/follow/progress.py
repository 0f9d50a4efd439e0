"""What is seen while runs are at work: a live table, lines in a log, one run's line."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.live import Live

from rundir import ENDED, State, Status, tell
from sweeps.follow.display import err, summary
from sweeps.follow.runstate import RunState
from sweeps.follow.runtable import progress_line, run_table, worth_showing
from sweeps.planning.plan import Plan

LINES_EVERY_S = 10.0
"""Seconds between progress lines where stderr is not a terminal."""


@dataclass(frozen=True)
class Pace:
    """Seconds between two looks at a sweep."""

    first: float = 2.0
    """After a run has changed its state, or its reason."""
    moving: float = 10.0
    """The most while runs only make steps."""
    longest: float = 30.0
    """The most while nothing changes at all."""
    growth: float = 1.5

    def after(self, pause: float, *, has_changed: bool, has_moved: bool) -> float:
        """Return the pause that follows a look, given the one before it."""
        if has_changed:
            return self.first
        return min(pause * self.growth, self.moving if has_moved else self.longest)


class Printer(Protocol):
    """Shows where the runs stand, look after look."""

    def __enter__(self) -> Printer: ...
    def __exit__(self, *_: object) -> None: ...
    def show(self, asked: Sequence[RunState]) -> None:
        """Show the states of a new look."""


def watch(
    plan: Plan,
    survey: Callable[[], list[RunState]],
    pace: Pace,
    printer: Printer | None = None,
) -> list[RunState]:
    """Show the runs until nothing is pending or running any more; return their last states.

    Args:
        plan: the sweep.
        survey: asks for the states.
        pace: how often.
        printer: shows them; by default for people, on stderr.
    """
    last: list[tuple[State, str | None]] = []
    steps: list[int | None] = []
    pause = pace.first
    with printer or (_LiveRuns(plan) if err.is_terminal else _Lines(plan)) as shown:
        while True:
            asked = survey()
            shown.show(asked)
            if not any(s.is_open for s in asked):
                return asked
            before, last = last, [(s.state, s.reason) for s in asked]
            made, steps = steps, [s.status.step if s.status else None for s in asked]
            pause = pace.after(pause, has_changed=last != before, has_moved=steps != made)
            time.sleep(pause)


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
        table = run_table(self._plan, worth_showing(asked, room), err.width)
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


class OneRun:
    """Progress of a single run in the foreground: one line, redrawn on a terminal."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._printed_at = 0.0

    def __call__(self, status: Status) -> None:
        """Show a new status."""
        line = f"{self.name}  {progress_line(status.state, status)}"
        if err.is_terminal:
            end = "\n" if status.state in ENDED else ""
            tell("\r\x1b[2K" + line[: err.width - 1], end)
        elif status.state in ENDED or time.monotonic() - self._printed_at >= LINES_EVERY_S:
            self._printed_at = time.monotonic()
            err.print(line, markup=False)
