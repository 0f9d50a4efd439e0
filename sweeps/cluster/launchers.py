"""Hydra launchers that hand a submission to submitit's executors and return at once.

They extend hydra-submitit-launcher's: with ``hydra/sweeper=basic`` they launch and wait as theirs
do; the planner calls :meth:`submit`, which leaves nothing behind in the launching process.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher import submitit_launcher as theirs
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf

from rundir import ClusterError, UserError
from sweeps.cluster import cores, scheduler
from sweeps.cluster.arrays import SBATCH_S, array_executor
from sweeps.cluster.clusters import (
    Cluster,
    LocalCluster,
    SlurmCluster,
    require_printable,
    rules_of,
    submitit_parameters,
)
from sweeps.cluster.intents import job_name
from sweeps.planning.phase import begin_work, environment_as_found
from sweeps.records import freeze, owners
from sweeps.records.ledger import LOCAL, SLURM, Share, Submission

if TYPE_CHECKING:
    from sweeps.planning.plan import Plan

Runs: TypeAlias = Sequence[tuple[int, int]]
"""(index in the plan, attempt to claim) of each run."""

_BROKEN = (
    *(errno.EPIPE, errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
)
"""What the kernel says of a connection to the controller that broke, or never was."""

_NO_ANSWER = re.compile(
    "(?i)unable to contact|timed out|zero bytes|communication|(?:send|receive) failure|"
    + "|".join(re.escape(os.strerror(code)) for code in _BROKEN)
)
"""What sbatch says when the controller may have taken the job without its knowing."""

_LOOKED_UP = "whether it took the job is looked up"

_TIMED_OUT = 124
"""Exit code of ``timeout`` when it ended its command."""

_BY_SIGNAL = range(129, 193)
"""Exit codes of a command that a signal ended; sbatch's own for an option it refuses is 255."""

_PATTERNS = "%\\"
"""Characters that sbatch does not take as they are in the path of a log."""

_NO_LIMIT_MIN = 60 * 24 * 3650
"""Stands for no limit where submitit wants a number of minutes."""


LOCAL_SIGNAL_S = 30
"""Seconds before its time limit at which a local worker's runs are told to stop."""


class _Result(JobReturn):
    """A result that raises a job's error without printing the job's overrides before."""

    @property  # type: ignore[misc] # nobody sets it
    def return_value(self) -> Any:
        """What the job returned.

        Raises:
            Exception: what it ended in.
        """
        if self.status is JobStatus.FAILED:
            raise self._return_value
        return super().return_value


class _Waiting:
    """What other sweepers than the planner call: launch as theirs does, and wait."""

    params: dict[str, Any]
    their_config: type
    """The dataclass of the fields that their launcher knows."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Launch the jobs and return their results."""
        names = {field.name for field in fields(self.their_config)}
        self.params = {key: value for key, value in self.params.items() if key in names}
        require_printable(self.params)
        begin_work()
        self.params["timeout_min"] = self.params["timeout_min"] or _NO_LIMIT_MIN
        with environment_as_found(), scheduler.clean_environment(), _without_warnings():
            results: Sequence[JobReturn] = super().launch(job_overrides, initial_job_idx)  # type: ignore[misc]
        return [_Result(**vars(result)) for result in results]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep submitit silent, and the sacct that it asks how jobs stand.

    Where accounting is off, both would say so twice at each look; how a job ended is in its result.
    """
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class Watcher(SlurmInfoWatcher):
        def _make_command(self) -> list[str] | None:
            command = super()._make_command()
            return command and ["sh", "-c", '"$@" 2>/dev/null', "sh", *command]

    log, before = logging.getLogger("submitit"), SlurmJob.watcher
    level, SlurmJob.watcher = log.level, Watcher(before._delay_s)
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        SlurmJob.watcher = before


class LocalLauncher(_Waiting, theirs.LocalLauncher):  # type: ignore[misc]
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
            timeout_min=cluster.timeout_min or _NO_LIMIT_MIN,
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


class SlurmLauncher(_Waiting, theirs.SlurmLauncher):  # type: ignore[misc]
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
        return {"job": sbatch(executor, _worker_command(plan, submission, []))}

    @classmethod
    def script(cls, cluster: SlurmCluster, plan: Plan, submission: Submission) -> str:
        """Return the sbatch script of a submission."""
        executor = cls._executor(cluster, plan, submission)
        command = _worker_command(plan, submission, [])
        text: str = executor._make_submission_file_text(command, submission.id)
        return text

    @staticmethod
    def _executor(cluster: SlurmCluster, plan: Plan, submission: Submission) -> Any:
        name = job_name(plan.sweep, submission.id)
        executor = slurm_executor(cluster, submission.folder(plan.home), name)
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


def slurm_executor(cluster: SlurmCluster, folder: Path, name: str) -> Any:
    """Return submitit's executor for jobs of this name, its scripts and logs in ``folder``."""
    executor = array_executor(folder)
    parameters = executor._convert_parameters(submitit_parameters(cluster))
    executor.update_parameters(**parameters, job_name=name)
    return executor


def script_of(executor: Any, command: str) -> str:
    """Return the sbatch script that submitit's executor would have for a command."""
    text: str = executor._make_submission_file_text(command, "dry_run")
    return text


def sbatch(executor: Any, command: str) -> str:
    """Have submitit's executor submit a command; return the job's id.

    Raises:
        ClusterError: with sbatch's words.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        # sbatch's words go into the error; submitit would print them as well.
        with (
            environment_as_found(),
            scheduler.clean_environment(),
            redirect_stderr(io.StringIO()),
        ):
            return str(executor._submit_command(command).job_id)
    except FailedSubmissionError as error:  # it ended well and named no job
        said = " ".join(str(error).split())
        raise scheduler.Unanswered(f"{said}; {_LOOKED_UP}") from None
    except FailedJobError as error:
        said = scheduler.words("sbatch", str(error))
        code = getattr(error.__cause__, "returncode", _TIMED_OUT)
        if code == _TIMED_OUT:
            silence = f"sbatch gave no answer within {SBATCH_S} s"
            silence += f"; it said: {said}" if said else ""
        elif code < 0 or code in _BY_SIGNAL:
            silence = "sbatch was killed"
        elif _NO_ANSWER.search(said):
            silence = f"sbatch said: {said}"
        else:
            raise ClusterError(f"sbatch said: {said or f'exit code {code}'}") from None
        raise scheduler.Unanswered(f"{silence}; {_LOOKED_UP}") from None


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
