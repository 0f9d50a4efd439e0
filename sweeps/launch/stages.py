"""Second stages: a sweep ``after`` another one that takes values from the best run of it.

    after: muon_lr
    after: {sweep: muon_lr, metric: val/loss, mode: min, allow_failed: false}
    grid:
      optimizer.optimizer_params.lr: ["${best:optimizer.optimizer_params.lr}"]
      optimizer: ["${best:optimizer,seed:0}"]       # the best of the runs with seed 0

The value that the first stage found stands in the overrides of the runs, which therefore can be
repeated without it. While jobs of the first stage are in the queue, the launch is repeated by a job
that SLURM starts after them.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rundir import DONE, State, UserError, read_json, require, unknown
from rundir.files import METRICS_FILE, RECORD_KEYS, RUN_FILE, SWEEP_DIR
from sweeps.define.definition import bare, canonical
from sweeps.define.overrides import parse
from sweeps.follow import display, states
from sweeps.follow.runstate import RunState
from sweeps.planning.identity import MAX_NAME_BYTES
from sweeps.planning.plan import Plan, PlannedRun


@dataclass(frozen=True)
class After:
    """The ``after`` of a definition."""

    sweep: str
    """Name of the first stage."""
    metric: str = "val/loss"
    """Stream and metric by which its runs are judged; the last record of the stream counts."""
    mode: str = "min"
    """Which is best: min or max."""
    allow_failed: bool = False
    """Whether to go on when runs of it failed."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("sweep", "metric"):
            value = getattr(self, name)
            require(isinstance(value, str) and value != "", f"sweep.after.{name}", value, "a text")
        plain = "/" not in self.sweep and not self.sweep.startswith(".")
        plain = plain and len(self.sweep.encode()) <= MAX_NAME_BYTES
        require(plain, "sweep.after.sweep", self.sweep, "the name of a sweep")
        parts = self.metric.split("/")
        good = len(parts) == 2 and all(parts)
        require(good, "sweep.after.metric", self.metric, "stream/metric, such as val/loss")
        require(self.mode in {"min", "max"}, "sweep.after.mode", self.mode, "min or max")
        good = isinstance(self.allow_failed, bool)
        require(good, "sweep.after.allow_failed", self.allow_failed, "true or false")

    @classmethod
    def read(cls, node: object) -> After | None:
        """Read the node of a definition; None where there is none.

        Raises:
            UserError: what is wrong with it.
        """
        if node is None:
            return None
        plain = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
        if isinstance(plain, str):
            return cls(plain)
        if not isinstance(plain, Mapping) or "sweep" not in plain:
            raise UserError(
                f"sweep.after = {plain!r}; must be the name of a sweep, or {{sweep: NAME, …}}"
            )
        legal = [field.name for field in fields(cls)]
        for key in plain:
            if key not in legal:
                raise unknown("key", str(key), legal, "sweep.after")
        return cls(**{str(key): value for key, value in plain.items()})


class Unfinished(UserError):
    """The first stage is not over yet."""

    def __init__(self, after: After, name: str, why: str, jobs: Sequence[str] = ()) -> None:
        super().__init__(f"sweep {name} comes after {after.sweep}, {why}")
        self.after, self.name = after, name
        self.jobs = tuple(jobs)
        """SLURM's ids of the jobs that still work on it; empty where none does."""


@dataclass(frozen=True)
class FirstStage:
    """A first stage that is over."""

    after: After
    plan: Plan
    completed: tuple[PlannedRun, ...]

    @classmethod
    def find(cls, after: After, name: str, multirun: Path, folders: Sequence[Path]) -> FirstStage:
        """Look how the first stage stands.

        Args:
            after: which it is.
            name: the second stage, for messages.
            multirun: the directory of both.
            folders: where definitions lie.

        Raises:
            Unfinished: it was not launched, or not to its end.
            UserError: there is none of that name, or runs of it failed.
        """
        plan = Plan.read(multirun / after.sweep)
        if plan is None:
            names = {path.stem for folder in folders for path in folder.glob("*.yaml")}
            names |= {path.parent.name for path in multirun.glob(f"*/{SWEEP_DIR}")} - {name}
            if after.sweep not in names:
                raise unknown("sweep", after.sweep, names, "sweep.after")
            why = f"which was never launched; launch it first: {_command(after.sweep)}"
            raise Unfinished(after, name, why)
        surveyed = states.survey(plan, states.queue_of(plan))
        _require_over(after, name, plan, surveyed)
        done = tuple(s.run for s in surveyed if s.state is State.COMPLETED)
        return cls(after, plan, done)

    def best(self, key: str, *filters: object) -> object:
        """Return the value that ``key`` has in the best completed run that the filters let pass.

        Args:
            key: a dotted config key, or a config group.
            filters: ``key:value`` or ``'key=value'``.

        Raises:
            UserError: no such run, key or metric.
        """
        chosen = [run for run in self.completed if all(self._passes(run, f) for f in filters)]
        said = "".join(f" with {text}" for text in filters)
        if not chosen:
            raise UserError(f"sweep.after: no run of {self.after.sweep}{said} completed")
        judged = [(self._scores[run.index], run.index, run) for run in chosen]
        finite = [one for one in judged if math.isfinite(one[0])]
        if not finite:
            self._require_metric()
            raise UserError(
                f"sweep.after: no completed run of {self.after.sweep}{said} has a finite "
                f"{self.after.metric}"
            )
        sign = 1 if self.after.mode == "min" else -1
        return self._value(min(finite, key=lambda one: (sign * one[0], one[1]))[2], str(key))

    @cached_property
    def _scores(self) -> dict[int, float]:
        stream, metric = self.after.metric.split("/")
        last = {run.index: self._last(run, stream).get(stream, {}) for run in self.completed}
        return {index: _number(record.get(metric)) for index, record in last.items()}

    def _last(self, run: PlannedRun, wanted: str | None = None) -> dict[str, dict[str, Any]]:
        return last_records(self.plan.directory(run) / METRICS_FILE, wanted)

    def _require_metric(self) -> None:
        found = {
            f"{stream}/{key}"
            for run in self.completed
            for stream, record in self._last(run).items()
            for key in record
            if key not in RECORD_KEYS
        }
        if self.after.metric not in found:
            error = unknown("metric", self.after.metric, found, f"runs of {self.after.sweep}")
            losses = sorted(name for name in found if name.endswith("/loss"))
            if self.after.metric != After.metric or not losses:
                raise error
            hint = f"write after: {{sweep: {self.after.sweep}, metric: {losses[0]}}}"
            raise UserError(f"{error}; {hint}")

    def _passes(self, run: PlannedRun, condition: object) -> bool:
        text = str(condition)
        key, sign, value = text.partition("=" if "=" in text else ":")
        if not sign or not key:
            raise UserError(f"${{best:…,{text}}}: a filter must be key:value or 'key=value'")
        found = self._value(run, key.strip())
        return canonical(found) == canonical(parse(f"x={value.strip()}").value())

    def _value(self, run: PlannedRun, key: str) -> object:
        """Return a run's choice of a config group, or what its config holds at a dotted key."""
        choices = self._choices(run.base)
        if key in choices:
            return choices[key]
        node: object = (read_json(self.plan.directory(run) / RUN_FILE) or {}).get("config")
        for i, part in enumerate(key.split(".")):
            if not isinstance(node, Mapping) or part not in node:
                legal = node if isinstance(node, Mapping) else ()
                above = ".".join(key.split(".")[:i]) or "the config"
                where = f"{above} of {run.name}, a run of {self.after.sweep}"
                raise unknown("key", part, legal, where)
            node = node[part]
        return node

    def _choices(self, base: int) -> Mapping[str, str]:
        if base not in self._known_choices:
            hydra = OmegaConf.create(self.plan.bases[base].hydra)
            self._known_choices[base] = dict(OmegaConf.select(hydra, "runtime.choices") or {})
        return self._known_choices[base]

    @cached_property
    def _known_choices(self) -> dict[int, dict[str, str]]:
        return {}


def _require_over(after: After, name: str, plan: Plan, surveyed: Sequence[RunState]) -> None:
    """Refuse a first stage that is at work, was not carried out to its end, or failed."""
    summary = display.summary(surveyed)
    live = [s for s in surveyed if s.state in {State.PENDING, State.RUNNING}]
    if live:
        jobs = sorted({s.job.partition("_")[0] for s in live if s.job and s.job[:1].isdecimal()})
        why = f"which is still at work ({summary}); follow it: python -m sweeps watch {plan.root}"
        raise Unfinished(after, name, why, jobs)
    if any(s.state is State.PLANNED for s in surveyed) or not surveyed:
        why = f"which is not complete ({summary}); launch it again: {_command(after.sweep)}"
        raise Unfinished(after, name, why)
    bad = [s for s in surveyed if s.state not in DONE]
    if bad and not after.allow_failed:
        named = ", ".join(s.run.name for s in bad[:3]) + (", …" if len(bad) > 3 else "")
        raise UserError(
            f"sweep {name} comes after {after.sweep}, which ended badly ({summary}: {named}); "
            f"python -m sweeps retry {plan.root}, or write allow_failed: true into sweep.after"
        )


def last_records(path: Path, wanted: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the last record of every stream in a metrics.jsonl; of the wanted one, quickly."""
    found: dict[str, dict[str, Any]] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return found
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # torn by a kill
            continue
        if isinstance(record, dict) and "stream" in record:
            found.setdefault(str(record["stream"]), record)
        if wanted in found:
            break
    return found


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def require_no_circle(after: After, names: Sequence[str | None], folders: Sequence[Path]) -> None:
    """Refuse definitions that wait for each other.

    Args:
        after: what the definition being launched comes after.
        names: what it is called.
        folders: where definitions lie.
    """
    path = [next(name for name in reversed(names) if name), after.sweep]
    while path[-1] not in {*path[:-1], *names}:
        following = _after_in_file(path[-1], folders)
        if following is None:
            return
        path.append(following)
    raise UserError(f"sweep.after leads in a circle: {' after '.join(path)}")


def _after_in_file(name: str, folders: Sequence[Path]) -> str | None:
    """Return what a definition comes after; None if nothing, or if it can't be read."""
    file = next((f / f"{name}.yaml" for f in folders if (f / f"{name}.yaml").is_file()), None)
    try:
        after = OmegaConf.select(OmegaConf.load(file), "sweep.after") if file else None
        found = After.read(after)
    except (UserError, OmegaConfBaseException, ValueError, OSError):
        return None
    return found.sweep if found else None


def _command(sweep: str) -> str:
    """Return the command that launches the first stage where the second one is launched."""
    given, _ = get_args_parser().parse_known_args(sys.argv[1:])
    kept = [a for a in given.overrides if bare(a).startswith(("cluster", "paths.multirun="))]
    flags = ("config_path", "config_dir", "config_name")
    for flag in (flag for flag in flags if getattr(given, flag)):
        kept += [f"--{flag.replace('_', '-')}", getattr(given, flag)]
    return shlex.join(["python", "launch.py", f"sweep={sweep}", *kept])
