"""Which sweep, and which of its runs, a command is about."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from rundir import UserError, unknown
from rundir.files import PLAN_FILE, SWEEP_DIR
from sweeps.cluster import scheduler
from sweeps.follow import successors
from sweeps.planning.plan import Plan, PlannedRun


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
    return read(directory_of(name, multirun))


def directory_of(name: str, multirun: Path) -> Path:
    """Return the directory of a sweep by name or path, whether it is launched yet or not.

    Raises:
        UserError: there is none; names the nearest.
    """
    for root in (Path(name), multirun / name):
        if (root / SWEEP_DIR).is_dir():
            return root
    raise unknown("sweep", name, (root.name for root in roots(multirun)), str(multirun))


def read(root: Path) -> Plan:
    """Return the plan of the sweep in a directory.

    Raises:
        UserError: it has none that can be read; of a second stage, what it waits for.
        ClusterError: whether a second stage waits can't be told, as SLURM does not answer.
    """
    plan = Plan.read(root)
    if plan is None:
        said = _without_plan(root)
        plan = Plan.read(root)  # it may have been launched meanwhile
        if plan is None:
            raise UserError(f"{root} {said}")
    return plan


def _without_plan(root: Path) -> str:
    """Say why a sweep has no plan; costs one squeue for a second stage."""
    found = successors.read(root)
    if found is None:
        return "has no plan; launch it again"
    return found.told(None if found.error is not None else scheduler.queue(found.user))


def roots(multirun: Path) -> list[Path]:
    """Return the directories of all sweeps, the one launched last at the end."""
    dated = []
    for folder in folders(multirun):
        try:
            dated.append((os.stat(f"{folder}/{SWEEP_DIR}/{PLAN_FILE}").st_mtime_ns, folder))
        except OSError:
            continue
    return [Path(folder) for _, folder in sorted(dated)]


def folders(multirun: Path) -> list[str]:
    """Return the directories in which sweeps may lie."""
    try:
        with os.scandir(multirun) as found:
            return [entry.path for entry in found if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def pick(plan: Plan, chosen: Iterable[str]) -> list[PlannedRun]:
    """Return runs by index (``3``), range (``3-7``), name or label, in the plan's order.

    The beginning of a name does where only one name begins so. A label, ``seed=1``, is what
    ``status`` shows.

    Raises:
        UserError: there is no such run, or several; names the nearest.
    """
    names = {run.name: run.index for run in plan.runs}
    labels = {label.replace(", ", ","): index for index, label in enumerate(plan.labels)}
    indices: set[int] = set()
    for text in _words(chosen, labels):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        if text in names or text in labels:
            indices.add(names[text] if text in names else labels[text])
        elif span and int(span[1]) <= int(span[2] or span[1]) < len(plan.runs):
            indices.update(range(int(span[1]), int(span[2] or span[1]) + 1))
        elif span:
            raise UserError(f"run = {text}; must be within 0-{len(plan.runs) - 1} in {plan.sweep}")
        else:
            indices.add(_beginning_with(text, plan))
    return [plan.runs[index] for index in sorted(indices)]


def _words(chosen: Iterable[str], labels: Collection[str]) -> Iterator[str]:
    """Yield what was typed, split at its commas unless these belong to a label."""
    for word in chosen:
        whole = word.replace(", ", ",").strip()
        yield from [whole] if whole in labels else (part.strip() for part in whole.split(","))


def _beginning_with(text: str, plan: Plan) -> int:
    found = [run.index for run in plan.runs if text and run.name.startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(plan.runs[index].name for index in found[:3])
        more = ", …" if len(found) > 3 else ""
        raise UserError(f"run = {text}; must name one run of {plan.sweep}, not {names}{more}")
    raise unknown("run", text, _few(plan.runs, text), plan.sweep)


def _few(runs: Sequence[PlannedRun], like: str) -> list[str]:
    """Return the names to list in an error: all of a small sweep, the nearest of a large one."""
    import difflib

    names = [run.name for run in runs]
    return names if len(names) <= 20 else difflib.get_close_matches(like, names, n=5, cutoff=0.3)
