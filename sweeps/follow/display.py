"""What the user sees: tables on stdout, progress and hints on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from rundir.errors import silence_stderr
from rundir.wording import count_of
from sweeps.follow.runstate import RunState
from sweeps.follow.runtable import by_reason, counts, last_lines
from sweeps.planning.plan import Plan

_LOG_WIDTH = 160
"""Columns where the output is a file or a pipe."""


class _Tables(Console):
    """What a command is for."""

    def on_broken_pipe(self) -> None:
        """Leave it to whoever runs the command what an output that nobody reads means."""
        raise BrokenPipeError


class _Progress(Console):
    """What is said beside it; in silence where its pipe or terminal is gone.

    What is under way does not depend on somebody who watches it.
    """

    def on_broken_pipe(self) -> None:
        """Go on in silence."""
        silence_stderr()

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does; a terminal that was closed answers with EIO."""
        try:
            super().print(*objects, **options)
        except OSError:
            silence_stderr()


def _is_terminal(stream: TextIO | None) -> bool:
    """Say whether a stream, which is None where the process was given none, is a terminal."""
    return stream is not None and stream.isatty()


out = _Tables(width=None if _is_terminal(sys.stdout) else _LOG_WIDTH, highlight=False)
err = _Progress(stderr=True, soft_wrap=True, highlight=False)


def emit(value: object) -> None:
    """Print what ``--json`` asks for."""
    print(json.dumps(value, indent=1, default=str))  # noqa: T201 - a table for programs


def warn(note: str) -> None:
    """Say what is not as it should be, and stops nothing."""
    err.print(f"warning: {note}", markup=False)


def announce(
    plan: Plan, asked: Sequence[RunState], wanted: Sequence[RunState], *, is_retry: bool = False
) -> None:
    """Say how many runs there are, how many are settled, and how many start now.

    Of a retry it has been said why each run ended.
    """
    if is_retry:
        count = f"{len(wanted)} of {count_of(len(plan.runs), 'run')}"
        err.print(f"sweep {plan.sweep}: {count} to submit again", markup=False)
        return
    again = sum(1 for state in wanted if state.attempts)
    resumed = f", {again} of them again" if again else ""
    err.print(f"sweep {plan.sweep}: {summary(asked)}; {len(wanted) or 'none'} to submit{resumed}")
    for (word, reason), alike in by_reason(wanted).items():
        err.print(f"  {count_of(len(alike), 'run')} {word}: {reason}", markup=False)


def submitted(plan: Plan, count: int, jobs: Sequence[str], workers: int) -> None:
    """Say what SLURM took, and how to follow it."""
    if count:
        taken = f"submitted {count_of(count, 'run')} as job {', '.join(jobs)}"
        if workers != count:
            taken += f" ({count_of(workers, 'worker')})"
        err.print(f"{taken}; they no longer need this shell")
    err.print(f"  follow   python -m sweeps watch {plan.root}")
    err.print(f"  collect  python -m analysis collect {plan.root}")


def print_tail(log: Path) -> None:
    """Print the last lines of a log to stderr, indented."""
    for line in last_lines(log):
        err.print(f"    {line}", markup=False)


def summary(asked: Sequence[RunState]) -> str:
    """Return the counts of states: ``8 runs: 6 completed, 2 running``."""
    words = ", ".join(f"{count} {word}" for word, count in counts(asked).items())
    return f"{count_of(len(asked), 'run')}: {words}"
