"""Hydra launchers that hand a submission to submitit's executors and return at once.

They extend hydra-submitit-launcher's: with ``hydra/sweeper=basic`` they launch and wait as theirs
do; the planner calls :meth:`submit`, which leaves nothing behind in the launching process.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher import submitit_launcher as theirs
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf

from rundir import ClusterError
from sweeps import cores, freeze, owners, scheduler
from sweeps.clusters import Cluster, LocalCluster, SlurmCluster, submitit_parameters
from sweeps.ledger import Submission

if TYPE_CHECKING:
    from sweeps.plan import Plan

_NO_LIMIT_MIN = 60 * 24 * 3650
"""Stands for no limit where submitit wants a number of minutes."""


class LocalLauncher(theirs.LocalLauncher):  # type: ignore[misc]
    """Starts workers on this machine that outlive the launching process."""

    cluster_type: type[Cluster] = LocalCluster
    params: dict[str, Any]

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Launch and wait, for sweepers other than the planner."""
        self.params = _known(self.params, LocalQueueConf)
        results: Sequence[JobReturn] = super().launch(job_overrides, initial_job_idx)
        return results

    @staticmethod
    def chunks(cluster: Cluster, runs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Return the submissions' sizes: one, with as many workers as fit on the machine."""
        threads = min(cluster.cpus_per_task or 1, len(cores.core_names()))
        gpus = () if cluster.gpus_per_node == 0 else cores.visible_gpus()
        slots = len(gpus) or len(cores.core_names()) // threads
        elements = max(1, min(len(runs), slots, cluster.workers or slots))
        shape = {"backend": "local", "elements": elements, "drain": True}
        return [{**shape, "runs": tuple(runs), "threads": threads, "gpus": gpus}]

    @staticmethod
    def submit(cluster: Cluster, plan: Plan, submission: Submission) -> dict[str, Any]:
        """Start the workers; return what the ledger records."""
        import submitit

        folder = submission.folder(plan.home)
        executor = submitit.LocalExecutor(folder=folder)
        executor.update_parameters(
            timeout_min=cluster.timeout_min or _NO_LIMIT_MIN, stderr_to_stdout=True
        )
        started = []
        for element in range(submission.elements):
            command = worker_command(plan, submission, ["--element", str(element)])
            pid = _in_session_of_its_own(
                lambda command=command: executor._submit_command(command).job_id
            )
            started.append(owners.named(int(pid), submission=submission.id).as_dict())
        return {"owners": started}

    @staticmethod
    def script(cluster: Cluster, plan: Plan, submission: Submission) -> str:
        """Return what ``dry_run`` shows of a submission."""
        del cluster
        return worker_command(plan, submission, ["--element", f"0..{submission.elements - 1}"])


class SlurmLauncher(theirs.SlurmLauncher):  # type: ignore[misc]
    """Submits array jobs to SLURM."""

    cluster_type: type[Cluster] = SlurmCluster
    params: dict[str, Any]

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Launch and wait, for sweepers other than the planner."""
        self.params = _known(self.params, SlurmQueueConf)
        results: Sequence[JobReturn] = super().launch(job_overrides, initial_job_idx)
        return results

    @staticmethod
    def chunks(cluster: Cluster, runs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Return the submissions' sizes: arrays no longer than the cluster's MaxArraySize."""
        shape = {"backend": "slurm", "threads": cluster.cpus_per_task}
        if cluster.workers is not None:
            elements = min(cluster.workers, len(runs))
            return [{**shape, "runs": tuple(runs), "elements": elements, "drain": True}]
        size = scheduler.max_array_size()
        parts = [tuple(runs[i : i + size]) for i in range(0, len(runs), size)]
        return [{**shape, "runs": part, "elements": len(part), "drain": False} for part in parts]

    @classmethod
    def submit(cls, cluster: Cluster, plan: Plan, submission: Submission) -> dict[str, Any]:
        """Submit one array; return what the ledger records.

        Raises:
            ClusterError: with sbatch's words.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = cls._executor(cluster, plan, submission)
        try:
            # sbatch's words go into the error; submitit would print them as well.
            with scheduler.clean_environment(), redirect_stderr(io.StringIO()):
                job = executor._submit_command(worker_command(plan, submission, []))
        except (FailedJobError, FailedSubmissionError) as error:
            said = [line for line in str(error).splitlines() if line.startswith("sbatch:")]
            raise ClusterError(" ".join(said) or " ".join(str(error).split())) from None
        return {"job": str(job.job_id)}

    @classmethod
    def script(cls, cluster: Cluster, plan: Plan, submission: Submission) -> str:
        """Return the sbatch script of a submission."""
        executor = cls._executor(cluster, plan, submission)
        text: str = executor._make_submission_file_text(worker_command(plan, submission, []), "dry")
        return text

    @staticmethod
    def _executor(cluster: Cluster, plan: Plan, submission: Submission) -> Any:
        from sweeps.arrays import ArrayExecutor

        executor = ArrayExecutor(folder=submission.folder(plan.home))
        parameters = executor._convert_parameters(submitit_parameters(cluster))
        executor.update_parameters(**parameters, job_name=job_name(plan.sweep, submission.id))
        executor.parameters["map_count"] = submission.elements
        return executor


def job_name(sweep: str, submission: str) -> str:
    """Return the name a submission's job bears in squeue; it carries the submission's id."""
    return f"{sweep}.{submission}"


def worker_command(plan: Plan, submission: Submission, more: Sequence[str]) -> str:
    """Return the shell command of one worker: Python, started in the frozen code."""
    frozen = plan.home.absolute() / freeze.CODE_DIR / submission.code
    worker = [sys.executable, "-u", "-m", "sweeps.worker", str(plan.root.absolute()), submission.id]
    return shlex.join(["env", "-C", str(frozen), *worker, *more])


def _known(params: Mapping[str, Any], config: type) -> dict[str, Any]:
    names = {field.name for field in fields(config)}
    return {key: value for key, value in params.items() if key in names}


def _in_session_of_its_own(start: Any) -> str:
    """Call ``start`` in a forked process that leads a new session; return the text it returns.

    submitit starts local jobs in the caller's session, where Ctrl-C or a lost terminal kills them.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read_end)
            os.setsid()
            os.write(write_end, str(start()).encode())
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
