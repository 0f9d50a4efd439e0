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
from pathlib import Path
from types import FrameType

from rundir import ENDED, OptsweepError, UserError, read_status
from rundir.files import LOG_FILE, write_status
from sweeps import claims, cores, freeze, provenance
from sweeps.execution import STOP_SIGNALS, Job, end_of_killed, execute
from sweeps.ledger import Submission
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
        owner = myself(slurm_element(), self.submission.id)
        for index, attempt in self._share():
            if self.stopped:
                break
            if claims.claim(self.plan.claims, str(index), attempt, owner):
                failed += self._carry_out(self.plan.runs[index], attempt) != 0
        return failed

    def _share(self) -> Sequence[tuple[int, int]]:
        """Return this element's runs and attempts; draining, all of them."""
        runs = self.submission.runs
        return runs if self.submission.drain else [runs[self.element]]

    def _carry_out(self, run: PlannedRun, attempt: int) -> int:
        """Fork a process for the run and wait for it; return its exit code."""
        directory = self.plan.directory(run)
        directory.mkdir(parents=True, exist_ok=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self._child = os.fork()
        if self._child == 0:
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
            _die_with_parent()
            log = os.open(directory / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            job = Job(
                self.plan.composed(run), directory, run.name, run.signature, self.plan.sweep,
                run.index, self.submission.code, self.submission.git,
            )  # fmt: skip
            status = execute(job, attempt, self._threads(), slurm_job=slurm_element())
            code = status.exit_code or 0
        except BaseException:  # noqa: BLE001 - the child must reach os._exit
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _threads(self) -> int | None:
        allotted = os.environ.get("SLURM_CPUS_PER_TASK")
        return int(allotted) if allotted else self.submission.threads

    def _preload(self) -> None:
        """Import the task, and what its ``preload()`` imports, once for all forked runs."""
        threads = str(self._threads() or len(os.sched_getaffinity(0)))
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = threads
        index, _ = self.submission.runs[0]
        task = self.plan.composed(self.plan.runs[index]).resolved["task"]
        module = importlib.import_module(str(task).rpartition(".")[0])
        getattr(module, "preload", lambda: None)()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.stopped = signal.Signals(number).name
        if self._child:
            os.kill(self._child, number)


def _die_with_parent() -> None:
    """Have the kernel kill this process when its worker dies.

    The worker holds the claim: a run that outlived it would be taken for lost and run twice.
    """
    pr_set_pdeathsig = 1
    worker = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if worker == 1 or os.getppid() != worker:
        os._exit(1)


def slurm_element() -> str | None:
    """Return this process's SLURM array element or job, e.g. ``1234_5``; None outside SLURM."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def _prepare_local(submission: Submission) -> None:
    """Leave the launcher's session, then wait for cores and a GPU."""
    cores.acquire(cores.core_names(), submission.threads or 1)
    if submission.gpus:
        device = cores.acquire([f"gpu-{name}" for name in submission.gpus], 1)[0]
        os.environ["CUDA_VISIBLE_DEVICES"] = device.removeprefix("gpu-")


def main() -> int:
    """Run a worker from the command line that the submission wrote."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.worker", description=__doc__)
    parser.add_argument("sweep_dir", type=Path)
    parser.add_argument("submission")
    parser.add_argument("--element", type=int)
    arguments = parser.parse_args()
    plan = Plan.read(arguments.sweep_dir)
    submission = Submission.read(arguments.sweep_dir / ".sweep", arguments.submission)
    if plan is None or submission is None:
        raise UserError(f"{arguments.sweep_dir} holds no submission {arguments.submission}")
    freeze.verify(provenance.PROJECT_ROOT)
    os.chdir(plan.cwd)
    element = arguments.element
    if element is None:
        element = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    if submission.backend == "local":
        _prepare_local(submission)
    return 1 if Worker(plan, submission, element).work() else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OptsweepError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
