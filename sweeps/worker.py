"""A worker: one element of a submission, carrying out one run or draining the sweep.

    python -m sweeps.worker SWEEP_DIR SUBMISSION [--element I]

It verifies the frozen code it runs from, imports the task once, and forks a process for each run,
so that a run that crashes takes nobody along. Asked to stop, it passes that on to its runs, waits
for their checkpoints, and has SLURM begin it again.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rundir import ENDED, OptsweepError, State, Status, UserError, ending, exit_code_of, read_status
from rundir.files import LOG_FILE, write_status
from sweeps import cores, freeze, provenance, requeue, warmup
from sweeps.backlog import Backlog
from sweeps.deadline import Deadline
from sweeps.execution import STOP_SIGNALS, Job, end_of_killed, execute
from sweeps.failures import FAILURES, Failures
from sweeps.ledger import LOCAL, Note, Share, Submission
from sweeps.owners import myself
from sweeps.plan import Plan
from sweeps.slots import Attempt, Slots


class Worker:
    """Works through its share of a submission; see the module's text."""

    def __init__(self, plan: Plan, submission: Submission, element: int) -> None:
        self.plan = plan
        self.submission = submission
        self.share = submission.share
        self.element = element
        self.stopped: str | None = None
        """Name of the signal that asked this worker to stop."""
        self.began = 0
        """Runs that it has begun."""
        self._slots = Slots(self.share.slots, self.share.runs_per_gpu)
        self._deadline = Deadline.of(self.share)
        self._backlog = Backlog(plan, submission, element, myself(requeue.this_element()))
        self._failures = Failures(plan.home, submission.launch or submission.id, self.share.rules)
        self._interrupted: list[Attempt] = []

    def work(self) -> int:
        """Carry out runs until none is left; return how many attempts ended badly."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        self.submission.retract(self.plan.home, Note.REQUEUED, self.element)
        warmup.warm_up(self.plan, self.share)
        bad = 0
        self._fill()
        while not self._slots.is_empty:
            attempt, wait_status = self._slots.wait()
            bad += wait_status != 0
            self._settle(attempt, wait_status)
            self._fill()
        halt = self._refusal()
        if halt is not None:
            self._leave(halt)
        return bad

    def _fill(self) -> None:
        """Begin runs until every slot has one, none is left, or none may be begun."""
        while not self._slots.is_full and self._refusal() is None:
            # Blocked from the claim to the fork, a stop signal waits until there is a run to tell.
            with _signals_blocked():
                is_stopped = self.stopped or signal.sigpending() & set(STOP_SIGNALS)
                taken = None if is_stopped else self._backlog.take()
                if taken is not None:
                    self.plan.directory(taken[0]).mkdir(parents=True, exist_ok=True)
                    self._slots.start(*taken, self._be_the_run)
                    self.began += 1
            if taken is None:
                return

    def _refusal(self) -> str | None:
        """Return why no further run is begun; None while one may be."""
        if self.stopped is not None:
            return f"the worker was stopped by {self.stopped}"
        return self._failures.refusal() or self._deadline.refusal()

    def _settle(self, attempt: Attempt, wait_status: int) -> None:
        """See to the record of a run whose process has ended, and to what comes of it."""
        directory = self.plan.directory(attempt.run)
        status = read_status(directory)
        if status is None or status.attempt != attempt.number or status.state not in ENDED:
            status = end_of_killed(status, attempt.number, wait_status)
            write_status(directory, status)
        self._deadline.learn(self.plan, attempt.run, status)
        if status.state is State.PREEMPTED and self.stopped is not None:
            self._interrupted.append(attempt)
        elif self._backlog.refusal(attempt, status.state) is None:
            self._backlog.put_back(attempt)
        elif status.state in FAILURES:
            self._failures.add(attempt.run.index)

    def _leave(self, halt: str) -> None:
        """Have SLURM begin this element again if there is reason to; where it does not, say so.

        Args:
            halt: why this worker begins no more runs.
        """
        cause = State.TIMEOUT if self._deadline.is_here else State.PREEMPTED
        over = {a: self._backlog.refusal(a, cause) for a in self._interrupted}
        self._tell({attempt: why for attempt, why in over.items() if why})
        unbegun = self._backlog.unbegun()
        # A worker that came to nothing before its time limit would come to nothing again.
        goes_on = unbegun and self.share.rules.covers(cause) and (self.stopped or self.began)
        if None in over.values() or goes_on:
            denial = self._failures.refusal() or requeue.requeue(
                self.submission, self.plan.home, self.element
            )
            if denial is None:
                return
            self._tell({attempt: denial for attempt, why in over.items() if why is None})
        if unbegun:
            said = f"not started: {halt}"
            self.submission.note(self.plan.home, Note.UNSTARTED, self.element, said)

    def _tell(self, denials: Mapping[Attempt, str]) -> None:
        """Record why runs that were interrupted are not requeued."""
        for attempt, why in denials.items():
            directory = self.plan.directory(attempt.run)
            status = read_status(directory)
            if status is not None and self.share.backend != LOCAL:
                told = replace(status, reason=f"{status.reason}; not requeued: {why}")
                write_status(directory, told)

    def _be_the_run(self, attempt: Attempt) -> NoReturn:
        """Be the forked process."""
        code = 1
        run, directory = attempt.run, self.plan.directory(attempt.run)
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
            threads, element = warmup.threads(self.share), requeue.this_element()
            status = execute(job, attempt.number, threads, slurm_job=element)
            code = status.exit_code or 0
        except BaseException as error:  # noqa: BLE001 - the state of the run must be recorded
            state, reason, code = ending(error)
            host = os.uname().nodename
            end = Status(state, attempt.number, host, reason=reason, exit_code=code)
            write_status(directory, end)
            traceback.print_exc()
        finally:
            os._exit(code)  # whatever was raised: a child that returned would work on as a worker

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.stopped = signal.Signals(number).name
        self._slots.tell(number)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _wait_for_place(share: Share) -> None:
    """Wait until this machine has the cores, and a GPU, for one more worker."""
    names = cores.core_names()
    cores.acquire(names, min(len(names), (share.threads or 1) * share.slots))
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
        submission.note(plan.home, Note.FAILED, element, str(error))
        raise
    if submission.share.backend == LOCAL:
        _wait_for_place(submission.share)
    return 1 if Worker(plan, submission, element).work() else 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
