"""A worker: one element of a submission, carrying out one run or draining the sweep.

    python -m sweeps.worker SWEEP_DIR SUBMISSION [--element I]

It verifies the frozen code it runs from, imports the task once, and forks a process for each run,
so that a run that crashes takes nobody along.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from rundir import (
    ENDED,
    OptsweepError,
    Status,
    UserError,
    ending,
    exit_code_of,
    read_status,
)
from rundir.files import LOG_FILE, write_status
from sweeps import claims, cores, freeze, provenance
from sweeps.execution import STOP_SIGNALS, Job, end_of_killed, execute
from sweeps.ledger import LOCAL, Share, Submission
from sweeps.owners import myself
from sweeps.plan import Plan, PlannedRun


class Worker:
    """Works through its share of a submission; see the module's text."""

    def __init__(self, plan: Plan, submission: Submission, element: int) -> None:
        self.plan = plan
        self.submission = submission
        self.element = element
        self.stopped: str | None = None
        """Name of the signal that asked this worker to stop."""
        self._child: int | None = None

    def work(self) -> int:
        """Carry out runs until none is left; return how many failed."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        self._preload()
        failed = 0
        owner = myself(_slurm_element())
        for index, attempt in self._share():
            # Blocked from the claim to the fork, a stop signal waits until there is a run to tell.
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            if not self._is_stopped() and claims.claim(
                self.plan.claims, str(index), attempt, owner
            ):
                failed += self._carry_out(self.plan.runs[index], attempt) != 0
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return failed

    def _is_stopped(self) -> bool:
        return self.stopped is not None or bool(signal.sigpending() & set(STOP_SIGNALS))

    def _share(self) -> Sequence[tuple[int, int]]:
        """Return this element's runs and attempts; draining, all of them."""
        runs = self.submission.share.runs
        return runs if self.submission.share.drain else [runs[self.element]]

    def _carry_out(self, run: PlannedRun, attempt: int) -> int:
        """Fork a process for the run and wait for it; return its exit code."""
        directory = self.plan.directory(run)
        directory.mkdir(parents=True, exist_ok=True)
        worker = os.getpid()
        self._child = os.fork()
        if self._child == 0:
            _die_with(worker)
            self._be_the_run(run, attempt, directory)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        _, wait_status = os.waitpid(self._child, 0)
        self._child = None
        status = read_status(directory)
        if status is None or status.attempt != attempt or status.state not in ENDED:
            write_status(directory, end_of_killed(status, attempt, wait_status))
        return os.waitstatus_to_exitcode(wait_status)

    def _be_the_run(self, run: PlannedRun, attempt: int, directory: Path) -> None:
        """Be the child: never return."""
        code = 1
        try:
            log = os.open(directory / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            composed = self.plan.composed(run)
            os.environ.update(composed.hydra.job.env_set)
            job = Job(
                composed,
                directory,
                run.name,
                run.signature,
                sweep=self.plan.sweep,
                index=run.index,
                rerun_of=self.plan.rerun_of,
                code=self.submission.code,
                git=self.submission.git,
            )
            status = execute(job, attempt, self._threads(), slurm_job=_slurm_element())
            code = status.exit_code or 0
        except BaseException as error:  # noqa: BLE001 - the state of the run must be recorded
            state, reason, code = ending(error)
            end = Status(state, attempt, os.uname().nodename, reason=reason, exit_code=code)
            write_status(directory, end)
            traceback.print_exc()
        finally:
            os._exit(code)  # whatever was raised: a child that returned would work on as a worker

    def _threads(self) -> int | None:
        for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
            if os.environ.get(name):
                return int(os.environ[name])
        return self.submission.share.threads

    def _preload(self) -> None:
        """Do once what every run needs: import the task, call its ``preload()``, find the GPUs."""
        threads = str(self._threads() or len(os.sched_getaffinity(0)))
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = threads
        provenance.packages()  # cached here for all runs: nvidia-smi may take a second
        provenance.gpus()
        index, _ = self.submission.share.runs[0]
        try:
            task = self.plan.composed(self.plan.runs[index]).resolved["task"]
            module = importlib.import_module(str(task).rpartition(".")[0])
            getattr(module, "preload", lambda: None)()
        except Exception:  # noqa: BLE001 - the run it belongs to will fail with it, no other
            traceback.print_exc()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.stopped = signal.Signals(number).name
        if self._child:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self._child, number)


def _die_with(worker: int) -> None:
    """Have the kernel kill this process when its worker dies.

    The worker holds the claim: a run that outlived it would be taken for lost and run twice.
    """
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != worker:  # it died before the call above
        os._exit(1)


def _slurm_element() -> str | None:
    """Return this process's SLURM array element or job, e.g. ``1234_5``; None outside SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def _wait_for_place(share: Share) -> None:
    """Wait until this machine has the cores, and a GPU, for one more run."""
    cores.acquire(cores.core_names(), share.threads or 1)
    if share.gpus:
        device = cores.acquire([f"gpu-{name}" for name in share.gpus], 1)[0]
        os.environ["CUDA_VISIBLE_DEVICES"] = device.removeprefix("gpu-")


def main() -> int:
    """Run a worker from the command line that the submission wrote."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.worker", description=__doc__)
    parser.add_argument("sweep_dir", type=Path)
    parser.add_argument("submission")
    parser.add_argument("--element", type=int)
    arguments = parser.parse_args()
    plan = Plan.read(arguments.sweep_dir)
    submission = plan and Submission.read(plan.home, arguments.submission)
    if not plan or not submission:
        raise UserError(f"{arguments.sweep_dir} holds no submission {arguments.submission}")
    element = arguments.element
    if element is None:
        element = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    try:
        freeze.verify(provenance.PROJECT_ROOT)
        sys.path[1:1] = freeze.task_places(provenance.PROJECT_ROOT)
        os.chdir(submission.cwd)
    except (OptsweepError, OSError) as error:
        submission.record_failure(plan.home, element, str(error))
        raise
    if submission.share.backend == LOCAL:
        _wait_for_place(submission.share)
    return 1 if Worker(plan, submission, element).work() else 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
