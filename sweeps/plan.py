"""The plan of a sweep: every run with its overrides, name, directory and signature.

It lies in ``<sweep>/.sweep/plan.json``. Launching again extends it; a run keeps its index, name and
directory for ever, and is recognised by its signature.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rundir import UserError, read_json, write_json
from rundir.files import PLAN_FILE, SCHEMA_VERSION, SWEEP_DIR
from sweeps import tasks
from sweeps.composition import Base, Composed, Composer, apply_values, resolve
from sweeps.definition import Point
from sweeps.identity import run_name, signature, varying_keys
from sweeps.overrides import override, shown

CLAIMS_DIR = "claims"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    index: int
    name: str
    directory: str
    """Relative to the sweep's directory."""
    signature: str
    overrides: tuple[str, ...]
    varying: dict[str, Any]
    """The parts in which the runs of this sweep differ, dotted key → value."""
    base: int
    """Which of the plan's bases the value overrides apply to."""


@dataclass(frozen=True)
class PlanBase:
    """A composed configuration that runs share, as YAML with interpolations unresolved."""

    groups: tuple[str, ...]
    config: str
    hydra: str


@dataclass
class Plan:
    """All runs of one sweep, in the order of their indices."""

    sweep: str
    root: Path
    """Directory of the sweep; relative to ``cwd`` unless the user gave an absolute one."""
    cwd: str
    """Where it was launched; runs see relative paths from here."""
    runs: list[PlannedRun] = field(default_factory=list)
    bases: list[PlanBase] = field(default_factory=list)
    created_at: float = field(default_factory=time.time)

    @property
    def home(self) -> Path:
        """Directory of the sweep's own files."""
        return self.root / SWEEP_DIR

    @property
    def claims(self) -> Path:
        """Directory of the claims on this sweep's runs."""
        return self.home / CLAIMS_DIR

    def directory(self, run: PlannedRun) -> Path:
        """Return the run's directory."""
        return self.root / run.directory

    @cached_property
    def labels(self) -> list[str]:
        """What tells each run from all others of the sweep: ``optimizer=muon, lr=0.01``."""
        points = [dict(text.partition("=")[::2] for text in run.overrides) for run in self.runs]
        keys = varying_keys(points)
        return [
            shown({key: point[key] for key in keys if key in point}) or run.name
            for run, point in zip(self.runs, points, strict=True)
        ]

    def composed(self, run: PlannedRun) -> Composed:
        """Compose a planned run again from what the plan holds, without the config tree."""
        base = self.bases[run.base]
        config = OmegaConf.create(base.config)
        hydra = OmegaConf.create(base.hydra)
        if not isinstance(config, DictConfig) or not isinstance(hydra, DictConfig):
            raise UserError(f"{self.home / PLAN_FILE} holds a base that is not a mapping")
        OmegaConf.set_struct(config, value=True)
        values = [text for text in run.overrides if text not in base.groups]
        applied = apply_values(config, values)
        return Composed(run.overrides, base.groups, applied, resolve(applied), hydra)

    def write(self) -> None:
        """Replace plan.json atomically."""
        self.home.mkdir(parents=True, exist_ok=True)
        record = {"version": SCHEMA_VERSION, "sweep": self.sweep, "cwd": self.cwd}
        record |= {"created_at": self.created_at, "bases": [asdict(base) for base in self.bases]}
        write_json(self.home / PLAN_FILE, {**record, "runs": [asdict(run) for run in self.runs]})

    @classmethod
    def read(cls, root: Path) -> Plan | None:
        """Return the plan of the sweep in ``root``; None if there is none.

        Raises:
            UserError: the plan was written by a newer optsweep, or is damaged.
        """
        path = root / SWEEP_DIR / PLAN_FILE
        record = read_json(path)
        if record is None:
            if path.exists():
                raise UserError(f"{path} is not a plan; restore it or move the sweep away")
            return None
        if record.get("version") != SCHEMA_VERSION:
            raise UserError(
                f"{path} has version {record.get('version')}; this optsweep reads {SCHEMA_VERSION}"
            )
        runs = [
            PlannedRun(**{**raw, "overrides": tuple(raw["overrides"])}) for raw in record["runs"]
        ]
        bases = [PlanBase(tuple(b["groups"]), b["config"], b["hydra"]) for b in record["bases"]]
        return cls(record["sweep"], root, record["cwd"], runs, bases, record["created_at"])


def overrides_of(points: Sequence[Point], fixed: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the override list of every point: the fixed ones, then the point's own."""
    return [(*fixed, *(override(key, value) for key, value in p.items())) for p in points]


def extend(
    plan: Plan, composer: Composer, points: Sequence[Point], fixed: Sequence[str]
) -> list[int]:
    """Compose and check every point and add those that the plan does not hold yet.

    Returns:
        The indices of the points' runs, old and new, in the order of ``points``.

    Raises:
        UserError: the first run that can't be composed or fails its check, or two that collide;
            the plan is then unchanged.
    """
    known = {run.signature: run.index for run in plan.runs}
    vary = varying_keys(points)
    bases, runs = list(plan.bases), list(plan.runs)
    indices, seen = [], dict[str, Point]()
    for point, overrides in zip(points, overrides_of(points, fixed), strict=True):
        composed, signed = _checked(composer, point, overrides)
        if signed in seen:
            raise UserError(
                f"sweep {plan.sweep}: runs ({shown(seen[signed])}) and ({shown(point)}) "
                "are the same run; remove one"
            )
        seen[signed] = point
        if signed not in known:
            base = _base_index(bases, composed.groups, composer.base(composed.groups))
            varying = {key: point[key] for key in vary if key in point}
            runs.append(_planned(len(runs), composed, signed, varying, base))
            known[signed] = len(runs) - 1
        indices.append(known[signed])
    _refuse_collisions(plan.sweep, runs)
    plan.bases, plan.runs = bases, runs
    return indices


def _checked(composer: Composer, point: Point, overrides: Sequence[str]) -> tuple[Composed, str]:
    try:
        composed = composer.compose(overrides)
        tasks.check(composed.resolved)
    except UserError as error:
        if not point:
            raise
        raise UserError(f"run ({shown(point)}): {error}") from error
    return composed, signature(composed.resolved)


def _planned(
    index: int, composed: Composed, signed: str, varying: dict[str, Any], base: int
) -> PlannedRun:
    name, directory = place(composed.resolved, varying, signed)
    return PlannedRun(index, name, directory, signed, composed.overrides, varying, base)


def place(resolved: dict[str, Any], varying: dict[str, Any], signed: str) -> tuple[str, str]:
    """Return a run's name and its directory below ``paths.outputs`` or the sweep.

    ``paths.group`` gives the folders above the run, e.g. ``<model>/<dataset>/<optimizer>``; what
    varies there is not repeated in the name.
    """
    paths = resolved.get("paths") or {}
    group = str(paths.get("group") or "")
    if group.startswith("/") or ".." in group.split("/"):
        raise UserError(f"paths.group = {group!r}; must be a relative path without ..")
    folders = group.split("/")
    rest = {k: v for k, v in varying.items() if str(v) not in folders or "." in k}
    name = run_name(rest, signed, title=paths.get("run_name"))
    return name, f"{group}/{name}" if group else name


def _base_index(bases: list[PlanBase], groups: tuple[str, ...], base: Base) -> int:
    for i, known in enumerate(bases):
        if known.groups == groups and known.config == OmegaConf.to_yaml(base.config):
            return i
    bases.append(PlanBase(groups, OmegaConf.to_yaml(base.config), OmegaConf.to_yaml(base.hydra)))
    return len(bases) - 1


def _refuse_collisions(sweep: str, runs: Iterable[PlannedRun]) -> None:
    taken: dict[str, PlannedRun] = {}
    for run in runs:
        other = taken.setdefault(run.directory, run)
        if other is not run:
            raise UserError(
                f"sweep {sweep}: runs {other.index} and {run.index} share directory "
                f"{run.directory}; set paths.run_name to tell them apart"
            )
