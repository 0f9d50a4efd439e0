"""The plan of a sweep: every run with its overrides, name, directory and signature.

It lies in ``<sweep>/.sweep/plan.json``. Launching again extends it; a run keeps its index, name and
directory for ever, and is recognised by its signature.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf

from rundir import UserError, read_json
from rundir.files import PLAN_FILE, SCHEMA_VERSION, SWEEP_DIR, replacing
from sweeps.define.definition import bare
from sweeps.define.overrides import shown
from sweeps.planning.composition import Base, Composed, compose_on
from sweeps.planning.identity import SHORT_SIGNATURE, signature, varying_keys

CLAIMS_DIR = "claims"

SUCCESSOR_DIR = "successor"
"""Script and log of the job that launches a second stage after the first."""


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


@dataclass(frozen=True)
class Candidate:
    """A composed and checked run that has no index yet; the fields are those of PlannedRun."""

    signature: str
    name: str
    directory: str
    overrides: tuple[str, ...]
    varying: dict[str, Any]
    base: PlanBase
    cluster: dict[str, Any]
    """The run's resolved ``cluster`` node: what its worker asks for."""
    task: str
    """Dotted name of the function that the run calls."""


@dataclass
class Plan:
    """All runs of one sweep, in the order of their indices."""

    sweep: str
    root: Path
    """Directory of the sweep; relative to ``cwd`` unless the user gave an absolute one."""
    runs: list[PlannedRun] = field(default_factory=list)
    bases: list[PlanBase] = field(default_factory=list)
    created_at: float = field(default_factory=time.time)
    tasks: list[str] = field(default_factory=list)
    """Dotted names of the functions that its runs call."""
    rerun_of: str | None = None
    """Directory of the run that the only run of this sweep repeats."""

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
        """What tells each run from all others of the sweep: ``optimizer=muon, lr=0.01``.

        Runs that differ in what no override says, as where the definition was edited between two
        launches, bear the beginning of their signature: ``lr=0.01 (3fa9c1)``.
        """
        points = [dict(text.partition("=")[::2] for text in run.overrides) for run in self.runs]
        keys = varying_keys(points)
        found = [
            shown({key: point[key] for key in keys if key in point}) or run.name
            for run, point in zip(self.runs, points, strict=True)
        ]
        count = Counter(found)
        return [
            label if count[label] == 1 else f"{label} ({run.signature[:SHORT_SIGNATURE]})"
            for run, label in zip(self.runs, found, strict=True)
        ]

    def admit(self, candidates: Sequence[Candidate]) -> list[int]:
        """Add the runs that the plan does not hold yet; return the indices of all of them.

        Raises:
            UserError: a run would share another one's directory; the plan is then unchanged.
        """
        known = {run.signature: run.index for run in self.runs}
        taken = {run.directory: run.signature for run in self.runs}
        runs = list(self.runs)
        bases = self._numbered_bases()
        for candidate in candidates:
            if taken.setdefault(candidate.directory, candidate.signature) != candidate.signature:
                raise UserError(
                    f"sweep {self.sweep}: two different runs share the directory "
                    f"{candidate.directory}; set paths.run_name to tell them apart"
                )
            if candidate.signature not in known:
                known[candidate.signature] = len(runs)
                runs.append(self._planned(candidate, len(runs), bases))
        self.runs = runs
        return [known[candidate.signature] for candidate in candidates]

    def renew(self, indices: Sequence[int], candidates: Sequence[Candidate]) -> None:
        """Give runs that are about to be submitted the overrides of this launch.

        They differ from the recorded ones in what cannot change the result, e.g. logging.
        """
        bases = self._numbered_bases()
        for index, candidate in zip(indices, candidates, strict=True):
            new = self._planned(candidate, index, bases)
            self.runs[index] = replace(self.runs[index], overrides=new.overrides, base=new.base)

    def _numbered_bases(self) -> dict[PlanBase, int]:
        return {base: number for number, base in enumerate(self.bases)}

    def _planned(self, candidate: Candidate, index: int, bases: dict[PlanBase, int]) -> PlannedRun:
        if candidate.task not in self.tasks:
            self.tasks.append(candidate.task)
        base = bases.setdefault(candidate.base, len(self.bases))
        if base == len(self.bases):
            self.bases.append(candidate.base)
        fields = {k: v for k, v in vars(candidate).items() if k not in ("base", "cluster", "task")}
        return PlannedRun(index=index, base=base, **fields)

    def composed(self, run: PlannedRun) -> Composed:
        """Compose a planned run again from what the plan holds, without the config tree.

        Raises:
            UserError: it does not resolve to what was checked at the launch.
        """
        base = self._base(run.base)
        setup_globals()  # ${now:…} and the other resolvers of Hydra
        again = compose_on(base, run.overrides, self.bases[run.base].groups)
        if signature(again.resolved) != run.signature:
            raise UserError(
                "the config resolves to other values here than at the launch; "
                "does it read the time or the environment, as in ${now:…} or ${oc.env:…}?"
            )
        return again

    def alike(self, run: PlannedRun) -> Hashable:
        """Return a key that runs share when the same ``cluster`` node was composed for them.

        Where the node refers to the rest of the config, each run has a key of its own.
        """
        ours = tuple(o for o in run.overrides if bare(o).partition("=")[0].startswith("cluster"))
        refers = self._refers(run.base) or "${" in "".join(ours)
        return run.index if refers else (run.base, ours)

    def _refers(self, number: int) -> bool:
        """Say whether the ``cluster`` node of a base refers to something."""
        if number not in self._referring:
            node = self._base(number).config.get("cluster")
            self._referring[number] = "${" in OmegaConf.to_yaml(node or {})
        return self._referring[number]

    @cached_property
    def _referring(self) -> dict[int, bool]:
        return {}

    def _base(self, number: int) -> Base:
        """Return a base parsed; cost: 40 ms, once a base."""
        if number not in self._parsed:
            written = self.bases[number]
            config, hydra = OmegaConf.create(written.config), OmegaConf.create(written.hydra)
            if not isinstance(config, DictConfig) or not isinstance(hydra, DictConfig):
                raise UserError(f"{self.home / PLAN_FILE} holds a base that is not a mapping")
            OmegaConf.set_struct(config, value=True)
            self._parsed[number] = Base(config, hydra)
        return self._parsed[number]

    @cached_property
    def _parsed(self) -> dict[int, Base]:
        return {}

    def write(self) -> None:
        """Replace plan.json atomically. It has a line for each run; cost: 10 µs a run."""
        self.home.mkdir(parents=True, exist_ok=True)
        record = {"version": SCHEMA_VERSION, "sweep": self.sweep, "created_at": self.created_at}
        record |= {"tasks": self.tasks, "rerun_of": self.rerun_of}
        record |= {"bases": [asdict(base) for base in self.bases]}
        lines = [json.dumps(vars(run), default=str) for run in self.runs]
        with replacing(self.home / PLAN_FILE) as file:
            text = json.dumps(record, default=str)[:-1] + ', "runs": [\n' + ",\n".join(lines)
            file.write(f"{text}\n]}}\n".encode())

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
                raise _not_a_plan(path)
            return None
        if record.get("version") != SCHEMA_VERSION:
            raise UserError(
                f"{path} has version {record.get('version')}; this optsweep reads {SCHEMA_VERSION}"
            )
        try:
            runs = [
                PlannedRun(**{**raw, "overrides": tuple(raw["overrides"])})
                for raw in record["runs"]
            ]
            bases = [PlanBase(tuple(b["groups"]), b["config"], b["hydra"]) for b in record["bases"]]
            sweep = record["sweep"]
        except (KeyError, TypeError):
            raise _not_a_plan(path) from None
        more = {key: record[key] for key in ("created_at", "tasks", "rerun_of") if key in record}
        return cls(sweep, root, runs, bases, **more)


def _not_a_plan(path: Path) -> UserError:
    return UserError(f"{path} is not a plan; restore it or move the sweep away")
