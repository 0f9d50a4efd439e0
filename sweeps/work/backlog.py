"""What a worker still has to do: runs to claim, in order, and those that others left behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property

from rundir import DONE, ENDED, ClusterError, State, read_status
from sweeps.cluster import requeue, scheduler
from sweeps.planning.plan import Plan, PlannedRun
from sweeps.records import claims
from sweeps.records.claims import Claim
from sweeps.records.ledger import SLURM, Submission
from sweeps.records.owners import Owner
from sweeps.work.slots import Attempt


class Backlog:
    """Yields claimed runs: first the worker's share, at its end what dead fellows left behind."""

    def __init__(self, plan: Plan, submission: Submission, element: int, owner: Owner) -> None:
        self.plan = plan
        self.share = submission.share
        self._owner = owner
        self._runs = self.share.runs if self.share.drain else [self.share.runs[element]]
        self._firsts = dict(self._runs)
        self._due: deque[tuple[int, int]] = deque()
        self._looked = not self.share.drain
        if not requeue.restarts():
            self._due.extend(self._runs)
        elif self.share.drain:
            self._due.extend([*self._left_by(self._is_mine), *self._runs])
        else:
            self._due.extend(self._again(*self._runs[0]))

    def take(self) -> tuple[PlannedRun, int] | None:
        """Claim the next run that is free; None when none is left."""
        while True:
            while self._due:
                index, attempt = self._due.popleft()
                if claims.claim(self.plan.claims, str(index), attempt, self._owner):
                    return self.plan.runs[index], attempt
            if self._looked:
                return None
            self._looked = True
            self._due.extend(self._left_by(self._is_over))

    def refusal(self, attempt: Attempt, end: State) -> str | None:
        """Return why a run that ended so is not begun again; None if the rules want it."""
        made = attempt.number - self._firsts[attempt.run.index]
        return self.share.rules.refusal(end, made)

    def put_back(self, attempt: Attempt) -> None:
        """Have a run that has ended tried once more, after the others."""
        self._due.append((attempt.run.index, attempt.number + 1))

    def unbegun(self) -> int:
        """Return how many runs of the share nobody has claimed; costs one listing."""
        tried = claims.attempts(self.plan.claims)
        return sum(1 for index, first in self._runs if tried.get(str(index), 0) < first)

    def _again(self, index: int, first: int) -> Iterator[tuple[int, int]]:
        """Yield the attempt with which this restarted element goes on with its own run, if any.

        Whoever had SLURM begin the element again wants it to go on, whatever the rules say. What
        ran in the element before is over, so that its claim needs no other proof.
        """
        claim = claims.latest(self.plan.claims, str(index))
        if claim is None or claim.attempt < first:
            yield index, first
            return
        status = read_status(self.plan.directory(self.plan.runs[index]))
        if self._is_mine(claim) and not (status is not None and status.state in DONE):
            yield index, claim.attempt + 1

    def _left_by(self, is_gone: Callable[[Claim], bool]) -> Iterator[tuple[int, int]]:
        """Yield the runs that ended early, or whose worker is gone, and the attempt to go on with.

        Costs a listing, and two small files for each run.
        """
        held = claims.all_latest(self.plan.claims)
        for index, first in self._runs:
            claim = held.get(str(index))
            if claim is None or claim.attempt < first:
                continue
            status = read_status(self.plan.directory(self.plan.runs[index]))
            if status and status.attempt >= claim.attempt and status.state in ENDED:
                end = status.state
            else:
                end = State.LOST if is_gone(claim) else State.RUNNING
            if self.share.rules.refusal(end, claim.attempt - first) is None:
                yield index, claim.attempt + 1

    def _is_mine(self, claim: Claim) -> bool:
        return claim.owner.job is not None and claim.owner.job == self._owner.job

    def _is_over(self, claim: Claim) -> bool:
        """Say whether the claim's process is surely gone: the kernel says so, or squeue."""
        if claim.owner.is_alive_here():
            return False
        return not claim.owner.is_alive(None) or (
            self.share.backend == SLURM and not claim.owner.is_alive(self._queue)
        )

    @cached_property
    def _queue(self) -> scheduler.Queue | None:
        """What squeue shows, asked once at most; None where it does not answer."""
        try:
            return scheduler.queue()
        except ClusterError:
            return None
