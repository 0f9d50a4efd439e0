"""Where Hydra finds us: it looks for plugins in this namespace only. The code is in sweeps/."""

from dataclasses import dataclass
from typing import Any, Optional

from hydra.core.config_store import ConfigStore

from sweeps.cluster import clusters, launchers
from sweeps.launch import planner


class LocalLauncher(launchers.LocalLauncher):
    """See sweeps.cluster.launchers."""


class SlurmLauncher(launchers.SlurmLauncher):
    """See sweeps.cluster.launchers."""


class Planner(planner.Planner):
    """See sweeps.launch.planner."""


@dataclass
class PlannerConf:
    """``hydra/sweeper=planner``."""

    _target_: str = "hydra_plugins.optsweep.Planner"
    params: Optional[dict[str, Any]] = None  # noqa: UP045 - OmegaConf reads the annotation on 3.10


_store = ConfigStore.instance().store
_store(group="hydra/sweeper", name="planner", node=PlannerConf, provider="optsweep")
_store(
    group="hydra/launcher", name="optsweep_local", node=clusters.LocalCluster, provider="optsweep"
)
_store(
    group="hydra/launcher", name="optsweep_slurm", node=clusters.SlurmCluster, provider="optsweep"
)
