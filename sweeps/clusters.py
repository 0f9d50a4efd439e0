"""What a sweep asks of a machine or cluster: the ``cluster`` node of the config.

The fields are those of hydra-submitit-launcher's configs, so its users' settings carry over, plus
our own. ``conf/cluster/*.yaml`` lists them all with their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Optional

from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rundir import UserError, unknown

_OURS = ("workers",)
"""Fields that submitit does not know."""

_FIXED = ("submitit_folder", "name", "_target_")
"""Fields of theirs that we set ourselves: the sweep's own folder, the submission's name."""


@dataclass
class LocalCluster(LocalQueueConf):  # type: ignore[misc]
    """This machine."""

    _target_: str = "hydra_plugins.optsweep.LocalLauncher"
    timeout_min: int = 0
    """Minutes that one worker may run; 0: no limit."""
    cpus_per_task: Optional[int] = 1  # noqa: UP045 - OmegaConf reads the annotation on 3.10
    """CPU threads of one run."""
    gpus_per_node: Optional[int] = None  # noqa: UP045
    """GPUs of one run: null uses one where there is one, 0 none."""
    workers: Optional[int] = None  # noqa: UP045
    """Runs at once; null: as many as cores / cpus_per_task, or GPUs. Never more than that."""

    def __post_init__(self) -> None:
        """Check what only applies to one machine."""
        _require_single_task(self.nodes, self.tasks_per_node)
        _require_positive("workers", self.workers)
        _require_positive("cpus_per_task", self.cpus_per_task)


@dataclass
class SlurmCluster(SlurmQueueConf):  # type: ignore[misc]
    """A SLURM cluster."""

    _target_: str = "hydra_plugins.optsweep.SlurmLauncher"
    workers: Optional[int] = None  # noqa: UP045
    """Array elements that drain the sweep together; null: one element a run."""

    def __post_init__(self) -> None:
        """Check what sbatch would only punish later."""
        _require_single_task(self.nodes, self.tasks_per_node)
        _require_positive("workers", self.workers)
        _require_positive("array_parallelism", self.array_parallelism)
        if self.timeout_min * 60 <= self.signal_delay_s + 60:
            raise UserError(
                f"cluster.timeout_min = {self.timeout_min}; must leave over a minute before the "
                f"signal at {self.signal_delay_s} s to the end: raise it, or lower "
                "cluster.signal_delay_s"
            )


Cluster = LocalCluster | SlurmCluster


def cluster(kind: type[LocalCluster | SlurmCluster], node: Mapping[str, Any]) -> Cluster:
    """Build the typed config from the ``cluster`` node.

    Raises:
        UserError: an unknown key, a wrong type, or a value that can't work.
    """
    legal = sorted({field.name for field in fields(kind)} - set(_FIXED))
    for key in node:
        if key not in legal:
            raise unknown("key", str(key), legal, "cluster")
    ours = {"submitit_folder": "", "name": ""}  # theirs refer to a hydra node
    try:
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), ours, dict(node)))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "cluster"
        raise UserError(
            f"cluster.{key} = {node.get(key)!r}: {str(error).splitlines()[0]}"
        ) from None
    if not isinstance(built, kind):
        raise UserError("cluster must be a mapping")
    return built


def submitit_parameters(built: Cluster) -> dict[str, Any]:
    """Return the fields that submitit's executor takes, without those left at null."""
    hidden = {*_OURS, *_FIXED, "max_num_timeout"}
    values = {field.name: getattr(built, field.name) for field in fields(built)}
    return {k: v for k, v in values.items() if k not in hidden and v not in (None, {}, [])}


def _require_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UserError(f"cluster.{name} = {value}; must be null or a whole number ≥ 1")


def _require_single_task(nodes: int, tasks: int) -> None:
    if nodes != 1 or tasks != 1:
        raise UserError(
            f"cluster.nodes = {nodes}, cluster.tasks_per_node = {tasks}; must both be 1: "
            "a run is one process so far"
        )
