"""``python -m analysis collect``: what it does not need is not loaded.

Pandas, Arrow or rich take longer than finding nothing new in 10,000 runs.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from analysis.collecting import collector
from analysis.parquet import manifest
from rundir.errors import tell

if TYPE_CHECKING:
    import argparse

_PROBLEMS_SHOWN = 5


def collect(options: argparse.Namespace) -> None:
    """Bring the store up to date, with a progress bar and a summary on stderr."""
    with ExitStack() as shown:
        summary = collector.collect(
            options.roots or None,
            options.store,
            wait=not options.no_wait,
            workers=options.workers,
            progress=_bar(shown) if sys.stderr.isatty() else None,
        )
    tell(f"{options.store}: {summary}")
    if not summary.problems:
        return
    from analysis.parquet.parts import read_problems

    rows = read_problems(options.store).slice(0, _PROBLEMS_SHOWN).to_pylist()
    for row in rows:
        place = "/".join(part for part in (row["run"], row["file"]) if part)
        tell(f"  {place}: {row['detail']}" if place else f"  {row['detail']}")
    if summary.problems > len(rows):
        tell(f"  all of them: {options.store / manifest.load(options.store).problems_file}")


def _bar(shown: ExitStack) -> collector.Progress:
    """Return a callback that shows a bar on stderr, from its first call until ``shown`` closes."""
    update: collector.Progress | None = None

    def advance(done: int, total: int) -> None:
        nonlocal update
        if update is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
            from rich.progress import TimeRemainingColumn as Remaining

            columns = (TextColumn("collecting"), BarColumn(), MofNCompleteColumn(), Remaining())
            bar = Progress(*columns, console=Console(stderr=True), transient=True)
            task = shown.enter_context(bar).add_task("", total=None)
            update = lambda done, total: bar.update(task, completed=done, total=total)  # noqa: E731
        update(done, total)

    return advance
