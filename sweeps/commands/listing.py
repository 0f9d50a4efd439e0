"""All sweeps at a glance: ``ls``.

``--json`` prints a list of ``{"sweep", "directory", "created_at", "summary"}``, the last as in
``status``; of a second stage that is not launched yet ``waits_for`` stands for the last two, of a
sweep whose files are damaged ``error``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rundir import ClusterError, UserError
from sweeps.cluster import scheduler
from sweeps.cluster.scheduler import Queue, UnknownQueue
from sweeps.commands.following import warn
from sweeps.follow import display, runtable, states, successors
from sweeps.follow.runstate import RunState
from sweeps.follow.selection import folders, read, roots
from sweeps.follow.successors import Successor
from sweeps.planning.plan import Plan
from sweeps.records import ledger
from sweeps.records.ledger import Entry

LISTED = 20
"""Sweeps that ``ls`` looks into unless all are asked for: each costs a small file a run."""


def ls(arguments: argparse.Namespace) -> int:
    """List the sweeps with how many runs are in which state, newest last."""
    found = roots(arguments.multirun)
    chosen = found if arguments.all else found[-LISTED:]
    read_ones, damaged = _read(chosen)
    others = (successors.read(Path(name)) for name in sorted(folders(arguments.multirun)))
    waiting = [successor for successor in others if successor is not None]
    queue = _queue(read_ones, waiting)
    rows = [
        (plan, states.survey(plan, queue, entries=entries, accounting=lambda _: {}))
        for plan, entries in read_ones
    ]
    if arguments.json:
        broken = [{"sweep": r.name, "directory": str(r), "error": e} for r, e in damaged.items()]
        told = [one.record for one in waiting]
        display.emit([*(_record(*row) for row in rows), *broken, *told])
        return 0
    _print(rows, damaged, waiting, queue)
    if not found and not waiting:
        display.err.print(f"no sweep in {arguments.multirun.absolute()}", markup=False)
    if len(chosen) < len(found):
        display.err.print(f"{len(found) - len(chosen)} older sweeps not shown; --all shows them")
    return 0


def _read(chosen: Sequence[Path]) -> tuple[list[tuple[Plan, list[Entry]]], dict[Path, str]]:
    """Return the plans with their ledgers, and of the others why they can't be read."""
    plans: list[tuple[Plan, list[Entry]]] = []
    damaged: dict[Path, str] = {}
    for root in chosen:
        try:
            plan = read(root)
            plans.append((plan, ledger.entries(plan.home)))
        except UserError as error:
            damaged[root] = str(error)
        except OSError as error:
            damaged[root] = f"{error.filename}: {error.strerror}"
    return plans, damaged


def _queue(known: Sequence[tuple[Plan, list[Entry]]], waiting: Sequence[Successor]) -> Queue | None:
    """Ask squeue once for all sweeps; None if none of them has anything to do with SLURM."""
    try:
        for plan, entries in known:
            queue = states.queue_of(plan, entries)
            if queue is not None:
                return queue
        return scheduler.queue(waiting[0].user) if waiting else None
    except ClusterError as error:
        warn([f"{error}; the states are from the runs' own records"])
        return UnknownQueue()


def _record(plan: Plan, surveyed: Sequence[RunState]) -> dict[str, Any]:
    return {
        "sweep": plan.sweep,
        "directory": str(plan.root),
        "created_at": plan.created_at,
        "summary": {"runs": len(surveyed), "states": runtable.counts(surveyed)},
    }


def _print(
    rows: Sequence[tuple[Plan, list[RunState]]],
    damaged: Mapping[Path, str],
    waiting: Sequence[Successor],
    queue: Queue | None,
) -> None:
    lines = [("created", "sweep", "runs", "directory")]
    for plan, surveyed in rows:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(plan.created_at))
        lines.append((created, plan.sweep, display.summary(surveyed), str(plan.root)))
    lines.extend(("", root.name, error, str(root)) for root, error in damaged.items())
    lines.extend(("", one.sweep, one.told(queue), one.directory) for one in waiting)
    if len(lines) == 1:
        return
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    for line in lines:
        cells = [text.ljust(width) for text, width in zip(line, widths, strict=False)]
        display.out.print("  ".join([*cells, line[3]]), markup=False, soft_wrap=True)
