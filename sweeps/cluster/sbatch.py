"""Asking sbatch, through submitit's executor, and telling a refusal from no answer."""

from __future__ import annotations

import errno
import io
import os
import re
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from rundir import ClusterError
from sweeps.cluster import scheduler
from sweeps.cluster.clusters import SlurmCluster, submitit_parameters
from sweeps.planning.phase import environment_as_found

ANSWER_S = 60
"""Seconds that sbatch may take: out of job slots, it would sleep and retry for hours."""

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


def array_executor(folder: Path) -> Any:
    """Return an executor that writes and submits sbatch scripts.

    Cost: 0.15 s, to import submitit.
    """
    import submitit

    class ArrayExecutor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            """Let a dry run write scripts where there is no SLURM; launches look before."""
            return 1

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return ["timeout", str(ANSWER_S), "sbatch", str(submission_file_path)]

    return ArrayExecutor(folder=folder)


def slurm_executor(cluster: SlurmCluster, folder: Path, name: str) -> Any:
    """Return submitit's executor for jobs of this name, its scripts and logs in ``folder``."""
    executor = array_executor(folder)
    parameters = executor._convert_parameters(submitit_parameters(cluster))
    executor.update_parameters(**parameters, job_name=name)
    return executor


def script_of(executor: Any, command: str, uid: str) -> str:
    """Return the sbatch script that submitit's executor would have for a command of this id."""
    text: str = executor._make_submission_file_text(command, uid)
    return text


def submit(executor: Any, command: str) -> str:
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
            silence = f"sbatch gave no answer within {ANSWER_S} s"
            silence += f"; it said: {said}" if said else ""
        elif code < 0 or code in _BY_SIGNAL:
            silence = "sbatch was killed"
        elif _NO_ANSWER.search(said):
            silence = f"sbatch said: {said}"
        else:
            raise ClusterError(f"sbatch said: {said or f'exit code {code}'}") from None
        raise scheduler.Unanswered(f"{silence}; {_LOOKED_UP}") from None
