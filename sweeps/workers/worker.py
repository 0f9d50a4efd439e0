"""A worker: one element of a submission, carrying out one run or draining the sweep.

It verifies the frozen code it runs from, imports the task once, and forks a process for each run,
so that a run that crashes takes nobody along. Asked to stop, it passes that on to its runs, waits
for their checkpoints, and has SLURM begin it again.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

from rundir import (
    ENDED,
    OptsweepError,
    State,
    Status,
    Superseded,
    UserError,
    read_status,
)
from rundir.files import write_status
from sweeps.cluster import cores, requeue
from sweeps.planning.plan import Plan, PlannedRun
from sweeps.records import claims, freeze, provenance
from sweeps.records.failures import FAILURES, Failures
from sweeps.records.ledger import LOCAL, Note, Share, Submission
from sweeps.records.rules import NOT_REQUEUED
from sweeps.workers import signals, warmup
from sweeps.workers.backlog import Backlog
from sweeps.workers.deadline import Deadline
from sweeps.workers.execution import end_of_killed
from sweeps.workers.follower import Follower
from sweeps.workers.leader import Leader
from sweeps.workers.process import be_the_run
from sweeps.workers.ranks import ALONE, Task, address_file
from sweeps.workers.slots import Attempt, Slots


class Worker:
    """Works through its share of a submission; see the module's text."""

    def __init__(
        self, plan: Plan, submission: Submission, element: int, leader: Leader | None = None
    ) -> None:
        """Take an element's share; with a leader, which this worker then is, of several tasks."""
        self.plan = plan
        self.submission = submission
        self.share = submission.share
        self.element = element
        self.stopped: str | None = None
        """Name of the signal that asked this worker to stop."""
        self.began = 0
        """Runs that it has begun."""
        self.trouble: str | None = None
        """What this machine refused it, e.g. a full disk; its runs may end, no more are begun."""
        self._was_replaced = False
        """A later attempt at one of its runs has begun: others go on with all that it does."""
        self._slots = Slots(self.share.slots, self.share.runs_per_gpu)
        self._deadline = Deadline.of(self.share)
        self._backlog = Backlog(plan, submission, element)
        self._failures = Failures(plan.home, submission.launch or submission.id, self.share.rules)
        self._interrupted: list[Attempt] = []
        self._leader = leader

    def work(self) -> int:
        """Carry out runs until none is left; return how many attempts ended badly."""
        signals.listen(self._on_signal)
        self.submission.retract(self.plan.home, Note.REQUEUED, self.element)
        if self._refusal() is None:
            warmup.warm_up(self.plan, self.share)
            if self._leader is not None:
                self._leader.gather(lambda: self.stopped is not None)
        bad = 0
        self._fill()
        while not self._slots.is_empty:
            attempt, wait_status = self._slots.wait(self._watch if self._leader else None)
            bad += wait_status != 0
            with self._troubles():
                self._settle(attempt, wait_status)
            self._fill()
        halt = self._refusal()
        if halt is not None and not self._was_replaced:
            with self._troubles():
                self._leave(halt)
        return bad + (self.trouble is not None)

    def _fill(self) -> None:
        """Begin runs until every slot has one, none is left, or none may be begun."""
        while not self._slots.is_full and self._refusal() is None:
            # Blocked from the claim to the fork, a stop signal waits until there is a run to tell.
            taken = None
            with signals.blocked(), self._troubles():
                is_stopped = self.stopped or signals.pending()
                taken = None if is_stopped else self._backlog.take()
                if taken is not None:
                    self._begin(*taken)
            if taken is None:
                return

    def _begin(self, run: PlannedRun, number: int) -> None:
        """Fork the process of a claimed attempt; record it as failed if that can't be done."""
        directory, leader = self.plan.directory(run), self._leader
        try:
            directory.mkdir(parents=True, exist_ok=True)
            place = leader.announce(run.index, number) if leader else ALONE
            self._slots.start(
                run, number, partial(be_the_run, self.plan, self.submission, place=place)
            )
        except OSError as error:
            why, now = f"could not be begun: {error.strerror}", time.time()
            host = os.uname().nodename
            end = Status(State.FAILED, number, host, reason=why, exit_code=1, ended_at=now)
            self._note(error)
            if leader is not None:
                leader.verdict(end)
            with self._troubles():
                self._record(run, end)
                self._failures.add(run.index)
        else:
            self.began += 1

    @contextmanager
    def _troubles(self) -> Iterator[None]:
        """Note what can't be written or begun, instead of dying of it with all running runs."""
        try:
            yield
        except (OSError, OptsweepError) as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        """Note and log a trouble; the first one is what explains those that follow from it."""
        at = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        said = f"{at}{getattr(error, 'strerror', None) or error}"
        self.trouble = self.trouble or said
        logging.getLogger(__name__).error("begins no more runs: %s", said)

    def _record(self, run: PlannedRun, status: Status) -> bool:
        """Write how an attempt ended; False if a later attempt has begun, whose record stays."""
        try:
            write_status(self.plan.directory(run), status, self._successor(run, status.attempt))
        except Superseded:
            return False
        return True

    def _successor(self, run: PlannedRun, attempt: int) -> Path:
        return claims.path_of(self.plan.claims, str(run.index), attempt + 1)

    def _refusal(self) -> str | None:
        """Return why no further run is begun; None while one may be."""
        if self._was_replaced:
            return "the worker was taken for gone: another one goes on with its runs"
        if self.stopped is not None:
            return f"the worker was stopped by {self.stopped}"
        if self.trouble is not None:
            return self.trouble
        if self.submission.is_cancelled(self.plan.home):
            return "the sweep was cancelled"
        if self._leader is not None and self._leader.is_alone:
            return "another of the element's tasks is gone"
        return self._failures.refusal() or self._deadline.refusal()

    def _settle(self, attempt: Attempt, wait_status: int) -> None:
        """See to the record of a run whose process has ended, and to what comes of it.

        A fellow that goes on with the run has it from here on. Only where the process has ended
        because of that was it, and with it this worker, taken for gone while it lived.
        """
        directory, is_ours = self.plan.directory(attempt.run), True
        status = read_status(directory)
        if status is None or status.attempt != attempt.number or status.state not in ENDED:
            status = end_of_killed(status, attempt.number, wait_status)
            with self._troubles():
                is_ours = self._record(attempt.run, status)
            self._was_replaced |= not is_ours and status.exit_code == Superseded.exit_code
        if self._leader is not None:
            judged = self._leader.verdict(status)
            if judged != status:
                status = judged
                with self._troubles():
                    is_ours &= self._record(attempt.run, status)
        if not is_ours:
            return
        self._deadline.learn(self.plan, attempt.run, status)
        if status.state is State.PREEMPTED and self.stopped is not None:
            self._interrupted.append(attempt)
        elif self._backlog.refusal(attempt, status.state) is None:
            self._backlog.put_back(attempt)
        elif status.state in FAILURES:
            with self._troubles():
                self._failures.add(attempt.run.index)

    def _leave(self, halt: str) -> None:
        """Have SLURM begin this element again if there is reason to; where it does not, say so.

        Args:
            halt: why this worker begins no more runs.
        """
        is_time = self.stopped is None or self._deadline.is_here
        cause = State.TIMEOUT if is_time else State.PREEMPTED
        over = {a: self._backlog.refusal(a, cause) for a in self._interrupted}
        over |= dict.fromkeys(self._backlog.waiting())
        self._tell({attempt: why for attempt, why in over.items() if why})
        unbegun = self._backlog.unbegun()
        # A worker that came to nothing before its time limit would come to nothing again.
        goes_on = unbegun and self.share.rules.covers(cause) and (self.stopped or self.began)
        if None in over.values() or goes_on:
            denial = self.trouble or self._failures.refusal()
            denial = denial or requeue.requeue(self.submission, self.plan.home, self.element)
            if denial is None:
                return
            self._tell({attempt: denial for attempt, why in over.items() if why is None})
        if unbegun:
            said = f"not started: {halt}"
            self.submission.note(self.plan.home, Note.UNSTARTED, self.element, said)

    def _tell(self, denials: Mapping[Attempt, str]) -> None:
        """Record why runs that were interrupted, or to be tried again, are not requeued."""
        for attempt, why in denials.items():
            status = read_status(self.plan.directory(attempt.run))
            if status is None or status.attempt != attempt.number:
                continue
            if self.share.backend != LOCAL:
                told = replace(status, reason=f"{status.reason}{NOT_REQUEUED}: {why}")
                self._record(attempt.run, told)
            if status.state in FAILURES:
                self._failures.add(attempt.run.index)

    def _watch(self) -> None:
        """Hear how the other tasks fare; see the leader's."""
        if self._leader is not None:
            self._leader.watch(lambda: self._slots.tell(signal.SIGKILL))

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.stopped = signal.Signals(number).name
        self._slots.tell(number)


def _wait_for_place(share: Share) -> None:
    """Wait until this machine has the cores, and a GPU, for one more worker.

    Nothing is claimed yet: a stop signal just ends the process.
    """
    signals.unblock()
    names = cores.core_names()
    cores.acquire(names, min(len(names), (share.threads or 1) * share.slots))
    if share.gpus:
        device = cores.acquire([f"gpu-{name}" for name in share.gpus], 1)[0]
        os.environ["CUDA_VISIBLE_DEVICES"] = device.removeprefix("gpu-")


def main() -> int:
    """Run a worker from the command line that the submission wrote."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.workers", description=__doc__)
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
        freeze.import_from(provenance.PROJECT_ROOT)
        os.chdir(submission.cwd)
    except (OptsweepError, OSError) as error:
        submission.note(plan.home, Note.FAILED, element, str(error))
        raise
    if submission.share.backend == LOCAL:
        _wait_for_place(submission.share)
    task = Task.here(submission)
    if task.size == 1:
        return 1 if Worker(plan, submission, element).work() else 0
    meeting = address_file(submission, plan.home, element)
    if task.rank:
        return Follower(plan, submission, task, meeting).work()
    leader = Leader(task, meeting)
    try:
        return 1 if Worker(plan, submission, element, leader).work() else 0
    finally:
        leader.dismiss()
