"""``dry_run``: what a launch would do, as a table with the scripts, or as one JSON object."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from rich.table import Table
from rich.text import Text

from rundir import State, require
from rundir.wording import count_of
from sweeps.cluster.clusters import FIXED, Cluster
from sweeps.define.overrides import brief
from sweeps.follow.display import err, out
from sweeps.follow.runstate import RunState
from sweeps.planning.plan import Plan
from sweeps.records.ledger import SLURM, Submission


class DryRun(Enum):
    """What the config's ``dry_run`` asks for."""

    NO = "false"
    TEXT = "true"
    JSON = "json"

    @classmethod
    def of(cls, value: object) -> DryRun:
        """Return the one that a value of the config means.

        Raises:
            UserError: it is neither true, false nor json.
        """
        text = str(value or False).lower()
        require(text in {"false", "true", "json"}, "dry_run", value, "true, false or json")
        return cls(text)


@dataclass(frozen=True)
class Array:
    """A submission that would be handed over."""

    cluster: Cluster
    submission: Submission
    script: str
    """What sbatch would read; on this machine the workers' command."""

    @property
    def hours(self) -> tuple[str, float] | None:
        """The most that it may use: ``GPU`` or ``CPU``, and hours; None without a time limit."""
        if not self.cluster.timeout_min:
            return None
        unit, each = "GPU", self.cluster.gpus
        if not each:
            tasks = self.cluster.nodes * self.cluster.tasks_per_node
            unit, each = "CPU", (self.cluster.cpus_per_task or 1) * tasks
        return unit, each * self.submission.elements * self.cluster.timeout_min / 60

    @property
    def each(self) -> str:
        """What one run gets, in words: ``1 CPU, no GPU, at most 60 min``."""
        asked, share = self.cluster, self.submission.share
        processes = asked.nodes * asked.tasks_per_node
        cpus = "the cluster's default of CPUs"
        if share.threads is not None:
            together = share.slots if share.backend == SLURM else 1
            cpus = count_of(max(1, share.threads * processes // together), "CPU")
        gpus = count_of(asked.gpus, "GPU") if asked.gpus else "no GPU"
        if asked.gpus and share.runs_per_gpu:
            gpus = f"a GPU shared by {count_of(share.runs_per_gpu, 'run')}"
        time = f"at most {asked.timeout_min} min" if asked.timeout_min else "no time limit"
        if share.drain and asked.timeout_min:
            time = f"{time} a worker"
        parts = [f"{processes} processes"] if processes > 1 else []
        return ", ".join([*parts, cpus, gpus, time])


@dataclass(frozen=True)
class Preview:
    """What :func:`sweeps.launch.submission.launch` would do."""

    plan: Plan
    asked: Sequence[RunState]
    """Every run asked for."""
    clusters: Mapping[str, Cluster]
    """What each of them asks for, by signature."""
    arrays: Sequence[Array]
    waiting: int
    """Runs for which the cluster has no room until others have ended."""
    limits: Sequence[str]
    """The limits of the cluster that keep them, or workers, out."""

    def print(self) -> None:
        """Print the table of runs, the scripts, and what they would ask of the cluster."""
        with out.capture() as shown:
            out.print(self._table())
        for line in shown.get().splitlines():
            print(line.rstrip())  # noqa: T201 - without the blanks that fill its cells
        for array in self.arrays:
            share = array.submission.share
            count = count_of(len(share.runs), "run")
            workers = count_of(share.elements, "worker")
            print(f"\n--- {share.backend}: {workers} for {count} ---")  # noqa: T201 - as they are
            print(array.script, end="" if array.script.endswith("\n") else "\n")  # noqa: T201
        print(self._summary())  # noqa: T201
        sys.stdout.flush()
        err.print("dry run: nothing was submitted or written")

    def as_dict(self) -> dict[str, Any]:
        """Return the runs, the arrays and the totals, for programs."""
        submitted = {index for array in self.arrays for index, _ in array.submission.share.runs}
        return {
            "sweep": self.plan.sweep,
            "directory": str(self.plan.root),
            "runs": [self._run(state, submitted) for state in self.asked],
            "arrays": [
                {
                    "backend": array.submission.share.backend,
                    "submission": array.submission.id,
                    "elements": array.submission.elements,
                    "drain": array.submission.share.drain,
                    "runs": [index for index, _ in array.submission.share.runs],
                    "resources": resources_of(array.cluster),
                    "script": array.script,
                }
                for array in self.arrays
            ],
            "totals": {
                "runs": len(self.asked),
                "to_submit": len(submitted),
                "waiting_for_room": self.waiting,
                "limits": list(self.limits),
                "arrays": len(self.arrays),
                "elements": sum(array.submission.elements for array in self.arrays),
                "gpu_hours": self._hours().get("GPU", 0.0) if self._is_limited else None,
                "cpu_hours": self._hours().get("CPU", 0.0) if self._is_limited else None,
            },
        }

    def _run(self, state: RunState, submitted: set[int]) -> dict[str, Any]:
        run = state.run
        return {
            "index": run.index,
            "name": run.name,
            "directory": str(self.plan.directory(run)),
            "varying": run.varying,
            "overrides": list(run.overrides),
            "state": _word(state),
            "submit": run.index in submitted,
            "resources": resources_of(self.clusters[run.signature]),
        }

    def _table(self) -> Table:
        keys = list(dict.fromkeys(key for state in self.asked for key in state.run.varying))
        resources = {sig: resources_of(cluster) for sig, cluster in self.clusters.items()}
        differing = _differing(
            list({id(c): resources[s] for s, c in self.clusters.items()}.values())
        )
        table = Table(box=None, pad_edge=False, header_style="bold")
        heads = [key.rpartition(".")[2] for key in keys]
        for name in ["#", *heads, *differing, "now", "directory"]:
            table.add_column(name, overflow="fold")
        for state in self.asked:
            run = state.run
            asked = resources[run.signature]
            cells = [run.varying.get(key, "") for key in keys] + [
                asked.get(k, "") for k in differing
            ]
            place = Text(str(self.plan.directory(run)))
            table.add_row(str(run.index), *(Text(brief(c)) for c in cells), _word(state), place)
        return table

    def _summary(self) -> str:
        runs = len({index for array in self.arrays for index, _ in array.submission.share.runs})
        workers = sum(array.submission.elements for array in self.arrays)
        text = f"{count_of(runs, 'run')} to submit as {count_of(workers, 'worker')}"
        if any(array.submission.share.backend == SLURM for array in self.arrays):
            text += f" in {count_of(len(self.arrays), 'array')}"
        if self.arrays and self._is_limited:
            most = " and ".join(
                f"{rough(hours)} {unit}-hours" for unit, hours in self._hours().items()
            )
            minutes = sorted({array.cluster.timeout_min for array in self.arrays})
            limit = ", ".join(str(each) for each in minutes)
            text += f"; at most {most} (time limit {limit} min)"
        for asked in dict.fromkeys(array.each for array in self.arrays):
            text += f"\neach run: {asked}"
        limits = ", ".join(self.limits)
        if self.waiting:
            text += f"\n{count_of(self.waiting, 'run')} would wait for another launch: {limits}"
        elif limits:
            text += f"\nfewer workers than asked for: {limits}"
        return text

    @property
    def _is_limited(self) -> bool:
        return all(array.hours is not None for array in self.arrays)

    def _hours(self) -> dict[str, float]:
        total: dict[str, float] = {}
        for unit, hours in (array.hours for array in self.arrays if array.hours is not None):
            total[unit] = total.get(unit, 0.0) + hours
        return total


def rough(hours: float) -> str:
    """Return hours in three digits, and whole from a hundred on: ``1.33``, ``12,345``."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _word(state: RunState) -> str:
    return "new" if state.state is State.PLANNED else str(state.state)


def resources_of(cluster: Cluster) -> dict[str, Any]:
    """Return the fields of a cluster node that ask for something."""
    values = {field.name: getattr(cluster, field.name) for field in fields(cluster)}
    return {k: v for k, v in values.items() if k not in FIXED and v not in (None, {}, [])}


def _differing(resources: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the fields in which some differ from others."""
    names = dict.fromkeys(name for asked in resources for name in asked)
    return [name for name in names if len({repr(asked.get(name)) for asked in resources}) > 1]
