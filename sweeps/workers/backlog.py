"""What a worker still has to do: runs to claim, in order, and those that others left behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import cache

from rundir import DONE, ENDED, ClusterError, State, read_status
from sweeps.cluster import requeue, scheduler
from sweeps.planning.plan import Plan, PlannedRun
from sweeps.records import claims
from sweeps.records.claims import Claim
from sweeps.records.ledger import SLURM, Submission
from sweeps.workers.slots import Attempt


class Backlog:
    """Yields claimed runs: first the worker's share, then what dead fellows left behind."""

    def __init__(self, plan: Plan, submission: Submission, element: int) -> None:
        self.plan = plan
        self.share = submission.share
        self._owner = requeue.claimant(self.share)
        self._runs = self.share.runs if self.share.drain else [self.share.runs[element]]
        self._firsts = dict(self._runs)
        self._due: deque[tuple[int, int]] = deque()
        self._returned: list[Attempt] = []
        self._settled: dict[int, int] = {}
        if not self._owner.restarts:
            self._due.extend(self._runs)
        elif self.share.drain:
            self._due.extend([*self._left_by(self._is_mine), *self._runs])
        else:
            self._due.extend(self._again(*self._runs[0]))

    def take(self) -> tuple[PlannedRun, int] | None:
        """Claim the next run that is free; None when none is left for the moment."""
        taken = self._next()
        if taken is None and self.share.drain:
            self._due.extend(self._left_by(self._over()))
            taken = self._next()
        return taken

    def _next(self) -> tuple[PlannedRun, int] | None:
        while self._due:
            index, attempt = self._due[0]
            won = claims.claim(self.plan.claims, str(index), attempt, self._owner)
            self._due.popleft()
            if won:
                return self.plan.runs[index], attempt
        return None

    def refusal(self, attempt: Attempt, end: State) -> str | None:
        """Return why a run that ended so is not begun again; None if the rules want it."""
        made = attempt.number - self._firsts[attempt.run.index]
        return self.share.rules.refusal(end, made)

    def put_back(self, attempt: Attempt) -> None:
        """Have a run that has ended tried once more, after the others."""
        self._due.append((attempt.run.index, attempt.number + 1))
        self._returned.append(attempt)

    def waiting(self) -> list[Attempt]:
        """Return those that were put back and have not been begun since."""
        due = set(self._due)
        return [a for a in self._returned if (a.run.index, a.number + 1) in due]

    def unbegun(self) -> int:
        """Return how many runs of the share nobody has claimed; costs one listing, or one look."""
        if not self.share.drain:
            ((index, first),) = self._runs
            return 0 if (self.plan.claims / f"{index}.{first}").exists() else 1
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

        Costs a listing, and two small files for each run that is not known to have ended for good.
        """
        held = claims.attempts(self.plan.claims)
        for index, first in self._runs:
            made = held.get(str(index), 0)
            if made < first or self._settled.get(index) == made:
                continue
            status = read_status(self.plan.directory(self.plan.runs[index]))
            has_ended = status and status.attempt >= made and status.state in ENDED
            if status and has_ended:
                end = status.state
            else:
                claim = claims.read(self.plan.claims, str(index), made)
                end = State.LOST if is_gone(claim) else State.RUNNING
            if self.share.rules.refusal(end, made - first) is None:
                yield index, made + 1
            elif has_ended:
                self._settled[index] = made

    def _is_mine(self, claim: Claim) -> bool:
        return claim.owner.is_before(self._owner)

    def _over(self) -> Callable[[Claim], bool]:
        """Return what says whether a claim's process is surely gone: by the kernel, or squeue.

        It asks squeue once at most.
        """
        queue = cache(_queue)

        def is_over(claim: Claim) -> bool:
            if claim.owner.is_alive_here():
                return False
            return not claim.owner.is_alive(None) or (
                self.share.backend == SLURM and not claim.owner.is_alive(queue())
            )

        return is_over


def _queue() -> scheduler.Queue | None:
    """Return what squeue shows; None where it does not answer."""
    try:
        return scheduler.queue()
    except ClusterError:
        return None
