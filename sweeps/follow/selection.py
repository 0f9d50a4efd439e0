"""Which sweep, and which of its runs, a command is about."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rundir import UserError, unknown
from rundir.files import PLAN_FILE, SWEEP_DIR
from sweeps.planning.plan import SUCCESSOR_DIR, Plan, PlannedRun


def find(name: str | None, multirun: Path) -> Plan:
    """Return the plan of a sweep by name or path; None stands for the one launched last.

    A name costs the same however many other sweeps there are; None costs a stat for each.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name is None:
        found = roots(multirun)
        if not found:
            raise UserError(f"no sweep in {multirun.absolute()}; launch one, or give its path")
        return read(found[-1])
    for root in (Path(name), multirun / name):
        if (root / SWEEP_DIR).is_dir():
            return read(root)
    raise unknown("sweep", name, (root.name for root in roots(multirun)), str(multirun))


def read(root: Path) -> Plan:
    """Return the plan of the sweep in a directory.

    Raises:
        UserError: it has none that can be read.
    """
    plan = Plan.read(root)
    if plan is None:
        raise UserError(_why_no_plan(root))
    return plan


def _why_no_plan(root: Path) -> str:
    """Say how it stands with a second stage that a job was to launch after the first one."""
    folder = root / SWEEP_DIR / SUCCESSOR_DIR
    if not folder.is_dir():
        return f"{root} has no plan"
    logs = sorted(folder.glob("*_log.out"), key=os.path.getmtime)
    lines = logs[-1].read_text(errors="replace").splitlines() if logs else []
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if said:
        return f"{root} was not launched: {said[-1]}"
    return f"{root} is not launched yet; a job does it when its first stage is over"


def roots(multirun: Path) -> list[Path]:
    """Return the directories of all sweeps, the one launched last at the end."""
    dated = []
    for folder in _folders(multirun):
        try:
            dated.append((os.stat(f"{folder}/{SWEEP_DIR}/{PLAN_FILE}").st_mtime_ns, folder))
        except OSError:
            continue
    return [Path(folder) for _, folder in sorted(dated)]


def _folders(multirun: Path) -> list[str]:
    try:
        with os.scandir(multirun) as found:
            return [entry.path for entry in found if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def pick(plan: Plan, chosen: Iterable[str]) -> list[PlannedRun]:
    """Return runs by index (``3``), by range (``3-7``) or by name, in the plan's order.

    Raises:
        UserError: there is no such run; names the nearest.
    """
    names = {run.name: run.index for run in plan.runs}
    indices: set[int] = set()
    for text in (part.strip() for word in chosen for part in word.split(",")):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        if text in names:
            indices.add(names[text])
        elif span and int(span[1]) <= int(span[2] or span[1]) < len(plan.runs):
            indices.update(range(int(span[1]), int(span[2] or span[1]) + 1))
        elif span:
            raise UserError(f"run = {text}; must be within 0-{len(plan.runs) - 1} in {plan.sweep}")
        else:
            raise unknown("run", text, _few(plan.runs, text), plan.sweep)
    return [plan.runs[index] for index in sorted(indices)]


def _few(runs: Sequence[PlannedRun], like: str) -> list[str]:
    """Return the names to list in an error: all of a small sweep, the nearest of a large one."""
    import difflib

    names = [run.name for run in runs]
    return names if len(names) <= 20 else difflib.get_close_matches(like, names, n=5, cutoff=0.3)
