"""``dry_run`` of a second stage whose first one is not over: what can be known of it by now."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rundir.wording import count_of
from sweeps.cluster.clusters import Cluster, cluster
from sweeps.define.definition import Point, bare
from sweeps.define.overrides import shown
from sweeps.follow.display import emit, err
from sweeps.launch import stages
from sweeps.launch.preview import Array, DryRun, resources_of
from sweeps.launch.references import is_placeholder
from sweeps.launch.submission import Launcher
from sweeps.records.ledger import Submission


@dataclass(frozen=True)
class Outlook:
    """A second stage that waits."""

    waiting: stages.Unfinished
    root: Path
    """Its directory."""
    points: Sequence[Point]
    """Its runs; :func:`sweeps.launch.references.placeholder` stands for what is not known yet."""
    clusters: Sequence[Cluster | None]
    """What each of them asks for; None where that is not known yet."""
    launcher: Launcher
    script: str | None
    """The sbatch script of the job that launches it; None where no job of the first one is left."""

    def show(self, how: DryRun) -> None:
        """Print it, for people or as JSON."""
        if how is DryRun.JSON:
            emit(self._as_dict())
            return
        for point, asked in zip(self.points, self.clusters, strict=True):
            print(shown(point), f"({self._each(asked)})", sep="  ")  # noqa: T201 - a dry run's table
        if self.script is not None:
            print(f"\n--- slurm: the job that launches it after {self._jobs} ---")  # noqa: T201
            print(self.script)  # noqa: T201
        print(self._summary())  # noqa: T201
        sys.stdout.flush()
        err.print(str(self.waiting), markup=False)
        err.print("dry run: nothing was started or written")

    @property
    def _jobs(self) -> str:
        return f"job {', '.join(self.waiting.jobs)}"

    def _summary(self) -> str:
        first = self.waiting.after.sweep
        return (
            f"{count_of(len(self.points), 'run')} to submit when {first} is over; their "
            f"directories, scripts and hours depend on what it finds"
        )

    def _each(self, asked: Cluster | None) -> str:
        if asked is None:
            return f"resources depend on {self.waiting.after.sweep}"
        share = self.launcher.share(asked, [(i, 1) for i in range(len(self.points))])
        return Array(asked, Submission("", share, "", ""), "").each

    def _as_dict(self) -> dict[str, Any]:
        first = {"sweep": self.waiting.after.sweep, "jobs": list(self.waiting.jobs)}
        runs = [
            {"varying": point, "resources": asked and resources_of(asked)}
            for point, asked in zip(self.points, self.clusters, strict=True)
        ]
        return {
            "sweep": self.waiting.name,
            "directory": str(self.root),
            "waits_for": {**first, "why": str(self.waiting)},
            "script": self.script,
            "runs": runs,
        }


def asked_by(point: Point, node: Mapping[str, Any], launcher: Launcher) -> Cluster | None:
    """Return what a run asks for; None where that is for the first stage to find.

    Args:
        point: what differs between the runs.
        node: the ``cluster`` node that all of them start from.
        launcher: what they are handed to.

    Raises:
        UserError: the cluster can't be asked for that.
    """
    own = {bare(key): value for key, value in point.items()}
    own = {k.removeprefix("cluster."): v for k, v in own.items() if k.startswith("cluster.")}
    if any(is_placeholder(value) for value in own.values()):
        return None
    whole = OmegaConf.create(dict(node))
    for key, value in own.items():
        OmegaConf.update(whole, key, value)
    plain = {str(key): value for key, value in OmegaConf.to_container(whole).items()}  # type: ignore[union-attr]
    return cluster(launcher.cluster_type, plain)
