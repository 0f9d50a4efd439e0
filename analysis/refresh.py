"""``python -m analysis collect``: without pandas, which takes longer than finding nothing new."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from analysis import collector, manifest
from analysis.store import read_problems

if TYPE_CHECKING:
    import argparse

_PROBLEMS_SHOWN = 5


def collect(options: argparse.Namespace) -> None:
    """Bring the store up to date, with a progress bar and a summary on stderr."""
    console = Console(stderr=True)
    bar = (TextColumn("collecting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = not console.is_terminal
    with Progress(*bar, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=None)
        summary = collector.collect(
            options.roots or None,
            options.store,
            wait=not options.no_wait,
            workers=options.workers,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    _say(f"{options.store}: {summary}")
    rows = read_problems(options.store).slice(0, _PROBLEMS_SHOWN).to_pylist()
    for row in rows:
        place = "/".join(part for part in (row["run"], row["file"]) if part)
        _say(f"  {place}: {row['detail']}" if place else f"  {row['detail']}")
    if summary.problems > len(rows):
        _say(f"  all of them: {options.store / manifest.load(options.store).problems_file}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - progress and hints
