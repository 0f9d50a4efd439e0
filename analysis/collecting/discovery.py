"""Finds run directories and sweep plans below roots, with the size and time of every source file.

Symbolic links below a root are not followed, so that a link in a run directory leads nowhere.
Costs one directory listing per directory and one ``lstat`` per source file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analysis.parquet.manifest import Stamp
from rundir.errors import UserError
from rundir.files import (
    CHECKPOINT_DIR,
    HYDRA_DIR,
    METRICS_FILE,
    MULTIRUN,
    OUTPUTS,
    PLAN_FILE,
    RUN_FILE,
    STATUS_FILE,
    SWEEP_DIR,
)

DEFAULT_ROOTS = (OUTPUTS, MULTIRUN)
"""Read when no root is named; also the names that run ids begin with wherever a root starts."""

CONFIG_FILE = f"{HYDRA_DIR}/config.yaml"
OVERRIDES_FILE = f"{HYDRA_DIR}/overrides.yaml"

_HYDRA_SWEEP_FILE = "multirun.yaml"
_RESULTS = re.compile(r"[^.].*-.*\.json|log\.json")


@dataclass
class Found:
    """One run directory."""

    run: str
    """Path relative to the parent of its root, with slashes: the run's id in the store."""
    directory: str
    """Absolute path."""
    hydra_sweep: str | None
    """Path of the sweep it lies in, as seen from its place alone."""
    files: dict[str, Stamp] = field(default_factory=dict)
    """Sources by name relative to the directory; Hydra's and GPT-opt's only where ours are not."""


@dataclass
class Discovery:
    """Everything below the roots."""

    roots: list[str] = field(default_factory=list)
    """Absolute paths that were walked."""
    runs: dict[str, Found] = field(default_factory=dict)
    plans: dict[str, Stamp] = field(default_factory=dict)
    """Absolute path of each plan.json."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Directory and reason, for what could not be listed."""


def default_roots() -> list[Path]:
    """Return the roots that exist here.

    Raises:
        UserError: there are none.
    """
    roots = [Path(name) for name in DEFAULT_ROOTS if Path(name).is_dir()]
    if not roots:
        names = " nor ".join(DEFAULT_ROOTS)
        raise UserError(f"roots = none; neither {names} exists in {Path.cwd()}; name a directory")
    return roots


def discover(roots: list[Path]) -> Discovery:
    """Walk the roots.

    Raises:
        UserError: a root is no directory, or two directories would share a run id.
    """
    found = Discovery()
    for root in roots:
        if not root.is_dir():
            raise UserError(f"root = {root}; must be a directory with run directories below it")
        top = os.path.realpath(root)
        if top not in found.roots:
            found.roots.append(top)
            _walk(top, _base(top), found)
    return found


def planned_run_id(directory: str, sweep_dir: str) -> str:
    """Return the id that a run of a sweep's plan will have once it has its directory."""
    base = _base(sweep_dir)
    return _relative(directory, base if base != sweep_dir else os.path.dirname(sweep_dir))


def below(path: str, tops: Sequence[str]) -> bool:
    """Say whether the path is one of the directories or lies in one; links are not resolved."""
    return any(path == top or path.startswith(top.rstrip(os.sep) + os.sep) for top in tops)


def _base(top: str) -> str:
    """Return the directory whose parent run ids are relative to, also for a part of a root."""
    for path in (Path(top), *Path(top).parents):
        if path.name in DEFAULT_ROOTS:
            return str(path)
    return top


def _relative(directory: str, base: str) -> str:
    # os.path.relpath takes 10 us, a tenth of the whole walk.
    return directory[len(os.path.dirname(base).rstrip(os.sep)) + 1 :]


def _walk(top: str, base: str, found: Discovery) -> None:
    pending: list[tuple[str, str | None]] = [(top, None)]
    while pending:
        directory, sweep = pending.pop()
        try:
            entries = {entry.name: entry for entry in os.scandir(directory)}
        except OSError as error:
            found.unreadable.append((directory, error.strerror or str(error)))
            continue
        if SWEEP_DIR in entries or _HYDRA_SWEEP_FILE in entries:
            sweep = os.path.relpath(directory, base)
        if SWEEP_DIR in entries:
            plan = os.path.join(directory, SWEEP_DIR, PLAN_FILE)
            if (stamp := _stamp(plan)) is not None:
                found.plans[plan] = stamp
        if {RUN_FILE, STATUS_FILE, HYDRA_DIR} & entries.keys():
            _add(found, Found(_relative(directory, base), directory, sweep), entries)
        pending.extend((path, sweep) for path in _subdirectories(entries))


def _subdirectories(entries: dict[str, os.DirEntry[str]]) -> Iterator[str]:
    for name, entry in entries.items():
        if name[0] != "." and name != CHECKPOINT_DIR and entry.is_dir(follow_symlinks=False):
            yield entry.path


def _add(found: Discovery, run: Found, entries: dict[str, os.DirEntry[str]]) -> None:
    known = found.runs.get(run.run)
    if known is not None:
        if known.directory != run.directory:
            both = f"{known.directory} and {run.directory}"
            raise UserError(f"run = {run.run}; names both {both}; collect them into two stores")
        return
    for name in (RUN_FILE, STATUS_FILE, METRICS_FILE):
        if name in entries:
            try:
                info = entries[name].stat(follow_symlinks=False)
            except OSError:
                continue
            run.files[name] = _stamp_of(info)
    if RUN_FILE not in entries:
        run.files |= hydra_files(run.directory)
        if METRICS_FILE not in entries:
            run.files |= _results(entries)
    found.runs[run.run] = run


def hydra_files(directory: str) -> dict[str, Stamp]:
    """Return the stamps of Hydra's own files in a run directory."""
    if os.path.islink(f"{directory}/{HYDRA_DIR}"):
        return {}
    stamps = {name: _stamp(f"{directory}/{name}") for name in (CONFIG_FILE, OVERRIDES_FILE)}
    return {name: stamp for name, stamp in stamps.items() if stamp is not None}


def _results(entries: dict[str, os.DirEntry[str]]) -> dict[str, Stamp]:
    stamps = {name: _stamp(entry.path) for name, entry in entries.items() if is_results(name)}
    return {name: stamp for name, stamp in stamps.items() if stamp is not None}


def is_results(name: str) -> bool:
    """Say whether a file beside .hydra may hold the results of GPT-opt, by its name."""
    return _RESULTS.fullmatch(name) is not None


def _stamp(path: str) -> Stamp | None:
    try:
        return _stamp_of(os.lstat(path))
    except OSError:
        return None


def _stamp_of(info: os.stat_result) -> Stamp:
    return (info.st_size, info.st_mtime_ns) if stat.S_ISREG(info.st_mode) else (-1, 0)
