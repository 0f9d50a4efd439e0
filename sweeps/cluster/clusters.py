"""What a sweep asks of a machine or cluster: the ``cluster`` node of the config.

The fields are those of hydra-submitit-launcher's configs, so its users' settings carry over, plus
our own. ``conf/cluster/*.yaml`` lists them all with their meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Optional, cast, get_type_hints

from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from rundir import IllegalValue, require, unknown
from sweeps.cluster.cores import visible_gpus
from sweeps.records.rules import BY_DEFAULT, Rules

_PACKING = ("workers", "runs_per_gpu", "runs_per_node")
_RULES = ("max_requeues", "requeue_on", "max_failures", "fail_fast")
_OURS = (*_PACKING, *_RULES)
"""Fields that submitit does not know."""

FIXED = ("submitit_folder", "name", "_target_")
"""Fields of theirs that we set ourselves: the sweep's own folder, the submission's name."""

_WORDS = {"Dict": "a mapping", "List": "a list", "int": "a whole number", "bool": "true or false"}
"""What a type is called in messages."""


@dataclass
class _Workers:
    """How runs share a worker, and what is done when they end badly; the same everywhere."""

    runs_per_gpu: Optional[int] = None  # noqa: UP045 - OmegaConf reads the annotation on 3.10
    """Runs side by side on each GPU of a worker, which drains the sweep; null: one run a worker."""
    runs_per_node: Optional[int] = None  # noqa: UP045
    """Runs side by side in a worker that has no GPU; they share its CPUs."""
    max_requeues: int = 3
    """Times that one run is begun again within its submission."""
    requeue_on: list[str] = field(default_factory=lambda: [str(state) for state in BY_DEFAULT])
    """Ends after which it is; also failed, out_of_memory and lost."""
    max_failures: Optional[int] = None  # noqa: UP045
    """Failed runs after which a launch begins no more; null: no limit."""
    fail_fast: bool = False
    """The same as ``max_failures: 1``."""


@dataclass
class LocalCluster(_Workers, LocalQueueConf):  # type: ignore[misc]
    """This machine."""

    _target_: str = "hydra_plugins.optsweep.LocalLauncher"
    timeout_min: int = 0
    """Minutes that one worker may run; 0: no limit."""
    cpus_per_task: Optional[int] = 1  # noqa: UP045
    """CPU threads of one run."""
    gpus_per_node: Optional[int] = None  # noqa: UP045
    """GPUs of one run: null takes one where there are any."""
    stderr_to_stdout: bool = True
    workers: Optional[int] = None  # noqa: UP045
    """Runs at once; null: as many as cores / cpus_per_task, or GPUs. Never more than that."""

    def __post_init__(self) -> None:
        """Check what only applies to one machine."""
        _require_one_process(self)
        _require_within_bounds(self)
        rules_of(self)
        where = "cluster.gpus_per_node"
        require(self.gpus_per_node in {None, 0, 1}, where, self.gpus_per_node, "null, 0 or 1 here")
        if self.gpus_per_node and not visible_gpus():
            raise IllegalValue(where, self.gpus_per_node, "null or 0: this machine has no GPU")
        _require_packing(self)

    @property
    def gpus(self) -> int:
        """GPUs of one worker."""
        return 0 if self.gpus_per_node == 0 else min(1, len(visible_gpus()))


@dataclass
class SlurmCluster(_Workers, SlurmQueueConf):  # type: ignore[misc]
    """A SLURM cluster."""

    _target_: str = "hydra_plugins.optsweep.SlurmLauncher"
    stderr_to_stdout: bool = True
    workers: Optional[int] = None  # noqa: UP045
    """Array elements that drain the sweep together; null: one element a run."""

    def __post_init__(self) -> None:
        """Check what sbatch would only punish later."""
        require(self.timeout_min >= 1, "cluster.timeout_min", self.timeout_min, "at least 1")
        _require_within_bounds(self)
        _require_packing(self)
        rules_of(self)
        require(
            self.max_num_timeout == 0,
            "cluster.max_num_timeout",
            self.max_num_timeout,
            "0: launching again resumes a run that hit its time limit",
        )
        require(
            self.timeout_min * 60 > self.signal_delay_s + 60,
            "cluster.timeout_min",
            self.timeout_min,
            f"above {self.signal_delay_s / 60 + 1:g}: a minute more than cluster.signal_delay_s",
        )

    @property
    def tasks(self) -> int:
        """Processes of one run."""
        return int(self.nodes * self.tasks_per_node)

    @property
    def gpus(self) -> int:
        """GPUs of one array element, as far as the fields that ask for some tell."""
        asked = re.search(r"gpu(?::[^:,=]+)?[:=](\d+)", str(self.gres or ""))
        on_node = self.gpus_per_node or (int(asked[1]) if asked else 0)
        return int(self.nodes * on_node or self.tasks * (self.gpus_per_task or 0))


Cluster = LocalCluster | SlurmCluster

_LEAST = {
    **dict.fromkeys(("timeout_min", "signal_delay_s"), 0),
    **dict.fromkeys(("gpus_per_node", "gpus_per_task"), 0),
    "mem_gb": 0,  # sbatch takes 0 for all that the node has
    **dict.fromkeys(("nodes", "tasks_per_node", "cpus_per_task", "cpus_per_gpu"), 1),
    **dict.fromkeys(("array_parallelism", *_PACKING), 1),
}
"""The least value of each field that is a number, but for those of the rules."""

_MOST = 10_000_000
"""Ten million is beyond any cluster, and as minutes 19 years."""

_OPTION = re.compile("[a-z][a-z0-9_-]*")
"""The name of an sbatch option."""

_OWN = {
    "array": "cluster.workers and cluster.array_parallelism: an element is a worker of the sweep",
    "chdir": "the sweep: its workers start in the frozen code",
    "error": "the sweep: its workers' logs lie in its directory",
    "job-name": "the sweep: a submission is found again by it",
    "output": "the sweep: its workers' logs lie in its directory",
    "wrap": "the sweep: the script is its own",
}
"""Options of sbatch that would break a submission, and what sets them."""

_SHELL = frozenset({"setup"})
"""Fields whose lines are shell code by definition."""


def cluster(kind: type[LocalCluster | SlurmCluster], node: Mapping[str, Any]) -> Cluster:
    """Build the typed config from the ``cluster`` node.

    Raises:
        UserError: an unknown key, a wrong type, or a value that can't work.
    """
    legal = sorted({field.name for field in fields(kind)} - set(FIXED))
    for key in node:
        if key not in legal:
            raise unknown("key", str(key), legal, "cluster")
    ours = {"submitit_folder": "", "name": ""}  # theirs refer to a hydra node
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), ours, dict(node))
    except ValidationError as error:
        key = (error.full_key or "").partition(".")[0]
        hint = str(get_type_hints(kind)[key])
        word = next((said for name, said in _WORDS.items() if name in hint), hint)
        word += " or null" if "Optional" in hint else ""
        raise IllegalValue(f"cluster.{key}", node[key], word) from None
    require_printable(dict(node))
    return cast("Cluster", OmegaConf.to_object(merged))


def require_printable(node: Mapping[str, Any]) -> None:
    """Refuse what would end its ``#SBATCH`` line: the shell would run the next one."""
    more = node.get("additional_parameters") or {}
    for name in more:
        must = "the name of an sbatch option, such as mail-type"
        good = isinstance(name, str) and _OPTION.fullmatch(name) is not None
        require(good, "key of cluster.additional_parameters", name, must)
        # sbatch takes the beginning of an option's name for the whole.
        ours = (own for own in _OWN if own.startswith(name.replace("_", "-")))
        for own in ours:
            raise IllegalValue(
                f"cluster.additional_parameters.{name}", more[name], f"left to {_OWN[own]}"
            )
    given = {key: value for key, value in node.items() if key not in _SHELL}
    given |= {f"additional_parameters.{name}": value for name, value in more.items()}
    for key, value in given.items():
        for part in value if isinstance(value, list) else [value]:
            require(str(part).isprintable(), f"cluster.{key}", value, "free of control characters")


def submitit_parameters(built: Cluster) -> dict[str, Any]:
    """Return the fields that submitit's executor takes, without those left at null."""
    hidden = {*_OURS, *FIXED, "max_num_timeout"}
    values = {field.name: getattr(built, field.name) for field in fields(built)}
    return {k: v for k, v in values.items() if k not in hidden and v not in (None, {}, [])}


def _require_within_bounds(built: Cluster) -> None:
    for name in (each.name for each in fields(built) if each.name in _LEAST):
        value, least = getattr(built, name), _LEAST[name]
        if value is not None:
            require(value >= least, f"cluster.{name}", value, f"null or at least {least}")
            require(value <= _MOST, f"cluster.{name}", value, f"at most {_MOST:,}")


def rules_of(built: Cluster) -> Rules:
    """Return the cluster's rules of retry and requeue.

    Raises:
        UserError: they can't work.
    """
    return Rules.of(
        built.max_requeues, built.requeue_on, built.max_failures, fail_fast=built.fail_fast
    )


def _require_packing(built: Cluster) -> None:
    for name in ("runs_per_gpu", "runs_per_node"):
        together = built.nodes * built.tasks_per_node
        must = f"null: the {together} tasks of an element work on one run"
        value = getattr(built, name)
        require(value is None or together == 1, f"cluster.{name}", value, must)
    if built.runs_per_gpu is not None:
        must = "null: no GPU is asked for; cluster.runs_per_node packs runs on CPUs"
        require(built.gpus > 0, "cluster.runs_per_gpu", built.runs_per_gpu, must)
    if built.runs_per_node is not None:
        must = "null where there are GPUs; cluster.runs_per_gpu packs runs on them"
        require(built.gpus == 0, "cluster.runs_per_node", built.runs_per_node, must)


def _require_one_process(built: LocalCluster) -> None:
    for name in ("nodes", "tasks_per_node"):
        value = getattr(built, name)
        must = "1: on one machine a run is one process; cluster=slurm takes more"
        require(value == 1, f"cluster.{name}", value, must)
