"""Hydra launchers that hand a submission to submitit's executors and return at once.

They extend hydra-submitit-launcher's: with ``hydra/sweeper=basic`` they launch and wait as theirs
do; the planner calls :meth:`submit`, which leaves nothing behind in the launching process.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hydra_plugins.hydra_submitit_launcher import submitit_launcher as theirs
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf

from rundir import ClusterError, UserError
from sweeps.cluster import cores, sbatch, scheduler
from sweeps.cluster.clusters import Cluster, LocalCluster, SlurmCluster, rules_of
from sweeps.cluster.intents import job_name
from sweeps.cluster.waiting import NO_LIMIT_MIN, Waiting
from sweeps.planning.phase import environment_as_found
from sweeps.records import freeze, owners
from sweeps.records.ledger import LOCAL, SLURM, Share, Submission

if TYPE_CHECKING:
    from sweeps.planning.plan import Plan

Runs: TypeAlias = Sequence[tuple[int, int]]
"""(index in the plan, attempt to claim) of each run."""

_PATTERNS = "%\\"
"""Characters that sbatch does not take as they are in the path of a log."""

LOCAL_SIGNAL_S = 30
"""Seconds before its time limit at which a local worker's runs are told to stop."""


class LocalLauncher(Waiting, theirs.LocalLauncher):  # type: ignore[misc]
    """Starts workers on this machine that outlive the launching process."""

    cluster_type = LocalCluster
    their_config = LocalQueueConf
    is_detached = False
    """Whether the user's shell is given back as soon as the runs are submitted."""

    @staticmethod
    def require(root: Path) -> None:
        """Refuse a sweep's directory whose name would not survive logs and tables."""
        _require_plain(root, "")

    @staticmethod
    def share(cluster: LocalCluster, runs: Runs) -> Share:
        """Give all runs to as many workers as fit on the machine."""
        free = len(cores.core_names())
        threads = min(cluster.cpus_per_task or 1, free)
        slots = min(cluster.runs_per_gpu or cluster.runs_per_node or 1, free // threads)
        gpus = cores.visible_gpus() if cluster.gpus else ()
        most = len(gpus) or (1 if cluster.runs_per_node else free // threads)
        elements = min(-(-len(runs) // slots), most, cluster.workers or most)
        settings = _settings(cluster) | {"threads": threads, "gpus": gpus, "slots": slots}
        settings["signal_delay_s"] = LOCAL_SIGNAL_S
        return Share(LOCAL, tuple(runs), elements, drain=True, **settings)

    @staticmethod
    def submit(cluster: LocalCluster, plan: Plan, submission: Submission) -> dict[str, Any]:
        """Start the workers; return what the ledger records."""
        import submitit

        executor = submitit.LocalExecutor(folder=submission.folder(plan.home))
        executor.update_parameters(
            timeout_min=cluster.timeout_min or NO_LIMIT_MIN,
            signal_delay_s=LOCAL_SIGNAL_S,
            stderr_to_stdout=cluster.stderr_to_stdout,
        )
        started = []
        for element in range(submission.elements):
            command = _worker_command(plan, submission, ["--element", str(element)])
            with environment_as_found():
                pid = _in_session_of_its_own(partial(executor._submit_command, command))
            started.append(asdict(owners.named(int(pid))))
        return {"owners": started}

    @staticmethod
    def script(cluster: LocalCluster, plan: Plan, submission: Submission) -> str:
        """Return what ``dry_run`` shows of a submission."""
        del cluster
        return _worker_command(plan, submission, ["--element", f"0..{submission.elements - 1}"])


class SlurmLauncher(Waiting, theirs.SlurmLauncher):  # type: ignore[misc]
    """Submits array jobs to SLURM."""

    cluster_type = SlurmCluster
    their_config = SlurmQueueConf
    is_detached = True

    @staticmethod
    def require(root: Path) -> None:
        """Refuse to go on where jobs can't be submitted, or not for a sweep in this directory."""
        _require_plain(root, _PATTERNS)
        scheduler.require()

    @staticmethod
    def share(cluster: SlurmCluster, runs: Runs) -> Share:
        """Give each run an element of its own, or all runs to elements that drain them."""
        settings = _settings(cluster) | {"signal_delay_s": cluster.signal_delay_s}
        settings["threads"] = cluster.cpus_per_task
        each = (cluster.runs_per_gpu or 0) * cluster.gpus or cluster.runs_per_node or 1
        if cluster.workers is not None or each > 1:
            most = -(-len(runs) // each)
            elements = min(cluster.workers or most, most)
            return Share(SLURM, tuple(runs), elements, drain=True, slots=each, **settings)
        return Share(SLURM, tuple(runs), len(runs), drain=False, **settings)

    @classmethod
    def submit(cls, cluster: SlurmCluster, plan: Plan, submission: Submission) -> dict[str, Any]:
        """Submit one array; return what the ledger records.

        Raises:
            ClusterError: with sbatch's words.
        """
        executor = cls._executor(cluster, plan, submission)
        return {"job": sbatch.submit(executor, _worker_command(plan, submission, []))}

    @classmethod
    def script(cls, cluster: SlurmCluster, plan: Plan, submission: Submission) -> str:
        """Return the sbatch script of a submission."""
        executor = cls._executor(cluster, plan, submission)
        command = _worker_command(plan, submission, [])
        return sbatch.script_of(executor, command, submission.id)

    @staticmethod
    def _executor(cluster: SlurmCluster, plan: Plan, submission: Submission) -> Any:
        name = job_name(plan.sweep, submission.id)
        executor = sbatch.slurm_executor(cluster, submission.folder(plan.home), name)
        # Said aloud, it does not depend on the site's JobRequeue.
        more = executor.parameters.get("additional_parameters") or {}
        if not {"requeue", "no-requeue"} & more.keys():
            again = "requeue" if submission.share.rules.requeues else "no-requeue"
            executor.parameters["additional_parameters"] = {again: True, **more}
        executor.parameters["map_count"] = submission.elements
        executor.parameters["srun_args"] = _srun_arguments(cluster)
        return executor


def _require_plain(root: Path, forbidden: str) -> None:
    path = str(root.absolute())
    if not path.isprintable():
        raise UserError(f"the sweep's directory {path!r} holds control characters; choose another")
    for sign in forbidden:
        if sign in path:
            raise UserError(
                f"the sweep's directory {path} holds a {sign}, which sbatch would not take as it "
                "is; set paths.multirun, or launch elsewhere"
            )


def _srun_arguments(cluster: SlurmCluster) -> list[str]:
    """Return srun's options for an element's tasks: when one is gone, none is left behind."""
    if cluster.tasks == 1:
        return []
    found = ["--kill-on-bad-exit=1"]
    if cluster.cpus_per_task is not None:  # since 22.05 srun does not take it from the job
        found.append(f"--cpus-per-task={cluster.cpus_per_task}")
    return found


def _settings(cluster: Cluster) -> dict[str, Any]:
    """Return what a share takes over from its cluster as it is."""
    return {
        "runs_per_gpu": cluster.runs_per_gpu,
        "timeout_min": cluster.timeout_min,
        "rules": rules_of(cluster),
    }


def _worker_command(plan: Plan, submission: Submission, more: Sequence[str]) -> str:
    """Return the shell command of one worker: Python, started in the frozen code."""
    frozen = plan.home.absolute() / freeze.CODE_DIR / submission.code
    worker = [
        sys.executable,
        "-u",
        "-m",
        "sweeps.workers",
        str(plan.root.absolute()),
        submission.id,
    ]
    return shlex.join(["env", "-C", str(frozen), *worker, *more])


def _in_session_of_its_own(start: Callable[[], Any]) -> str:
    """Start a job in a forked process that leads a new session; return its id.

    submitit starts local jobs in the caller's session, where Ctrl-C or a lost terminal kills them.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read_end)
            os.setsid()
            os.write(write_end, str(start().job_id).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    if not text:
        raise ClusterError("a local worker could not be started; its log may say why")
    return text
