"""The job that launches a second stage when the jobs of the first one are over.

It is the user's own command typed again: from the same directory, with the same Python, and with
the code as it is then. Launching submits only what is missing, so that neither a second such job
nor one that is killed does any harm.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rundir.files import SWEEP_DIR
from sweeps.cluster import scheduler
from sweeps.cluster.clusters import SlurmCluster, cluster
from sweeps.cluster.launchers import sbatch, slurm_executor
from sweeps.follow import display
from sweeps.launch.stages import Unfinished
from sweeps.planning.plan import SUCCESSOR_DIR

MEMORY_GB = 4
"""Enough to plan 10,000 runs several times over."""


def submit(waiting: Unfinished, root: Path, node: Mapping[str, Any]) -> None:
    """Submit the job, unless it waits already, and say what it waits for.

    Args:
        waiting: what keeps the second stage from being launched.
        root: the second stage's directory.
        node: the ``cluster`` node of this launch.

    Raises:
        UserError: an impossible ``cluster`` node.
        ClusterError: with sbatch's words.
    """
    scheduler.require()
    name = f"{waiting.name}.{SUCCESSOR_DIR}"
    said = scheduler.ask("squeue", "--noheader", "--me", f"--name={name}", "--format=%A")
    job = said.split()[0] if said.strip() else None
    again = "still waits" if job else "waits"
    if job is None:
        folder = (root / SWEEP_DIR / SUCCESSOR_DIR).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        job = sbatch(slurm_executor(_small(node, waiting.jobs), folder, name), _command())
        display.err.print(f"submitted job {job}; its log: {folder}/{job}_0_log.out", markup=False)
    display.err.print(
        f"sweep {waiting.name} {again} for {waiting.after.sweep} (job {', '.join(waiting.jobs)}): "
        f"job {job} launches it then; nothing needs this shell",
        markup=False,
    )


def _small(node: Mapping[str, Any], jobs: Sequence[str]) -> SlurmCluster:
    """Return what one small job after the others asks for, where the sweep asks for its runs."""
    more = {**(node.get("additional_parameters") or {}), "dependency": f"afterany:{':'.join(jobs)}"}
    memory = node.get("mem_gb")
    small = {"mem_gb": memory and min(memory, MEMORY_GB), "additional_parameters": more}
    return cast("SlurmCluster", cluster(SlurmCluster, {**node, **_ONE_SMALL_JOB, **small}))


_ONE_SMALL_JOB = {
    "nodes": 1,
    "tasks_per_node": 1,
    "cpus_per_task": 1,
    "workers": None,
    "runs_per_gpu": None,
    "runs_per_node": None,
    **dict.fromkeys(("gpus_per_node", "gpus_per_task", "gres", "cpus_per_gpu", "mem_per_gpu")),
}


def _command() -> str:
    """Return the shell command of this very launch."""
    program = str(Path(sys.argv[0]).absolute())
    return shlex.join(["env", "-C", str(Path.cwd()), sys.executable, "-u", program, *sys.argv[1:]])
