"""One truthful state per run: from its own record, then squeue, then sacct."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rundir import DONE, ENDED, State, Status, read_status
from sweeps import claims, ledger, scheduler
from sweeps.claims import Claim
from sweeps.ledger import LOCAL, Entry
from sweeps.plan import Plan, PlannedRun
from sweeps.scheduler import Element

Queue = Mapping[str, Element]


@dataclass(frozen=True)
class RunState:
    """Where one run of a sweep stands."""

    run: PlannedRun
    state: State
    attempts: int
    """How many attempts were claimed so far."""
    status: Status | None = None
    """The run's own record of its latest attempt."""
    reason: str | None = None
    job: str | None = None

    @property
    def is_wanted(self) -> bool:
        """Say whether launching again should submit the run."""
        return self.state in ENDED - DONE or self.state is State.PLANNED


def survey(plan: Plan, queue: Queue | None = None) -> list[RunState]:
    """Return the state of every run, in the plan's order.

    Args:
        plan: the sweep.
        queue: from :func:`sweeps.scheduler.queue`; None where there is no scheduler.
    """
    held = claims.all_latest(plan.claims)
    handed = _handed_over(plan)
    states = [
        _state(plan, run, held.get(str(run.index)), handed.get(run.index), queue)
        for run in plan.runs
    ]
    gone = {state.job for state in states if state.job and state.state in _UNEXPLAINED}
    endings = scheduler.endings(gone) if gone and queue is not None else {}
    return [_with_ending(state, endings) for state in states]


def attempts_of(claim: Claim | None, status: Status | None) -> int:
    """Return how many attempts were made; the record tells of those whose claims were deleted."""
    return max(claim.attempt if claim else 0, status.attempt if status else 0)


def standing(
    claim: Claim | None, status: Status | None, queue: Queue | None
) -> tuple[State, str | None]:
    """Return the state of a run's latest attempt, and the reason if it is a bad one.

    Args:
        claim: the latest claim; None before the first.
        status: the run's own record.
        queue: what squeue shows; None without it.
    """
    claimed = claim.attempt if claim else 0
    if status is not None and status.state in ENDED and status.attempt >= claimed:
        return status.state, status.reason
    if claim is None:
        return State.PLANNED, None
    if claim.owner.is_alive(queue):
        return State.RUNNING, None
    if claim.owner.job is not None:
        return State.LOST, f"job {claim.owner.job} left the queue without ending the run"
    where = f"process {claim.owner.pid} on {claim.owner.host}"
    return State.LOST, f"{where} is gone and left no end record"


def queue_of(plan: Plan) -> Queue | None:
    """Ask squeue, unless no job of the sweep was ever handed to SLURM.

    Raises:
        ClusterError: SLURM is there and does not answer.
    """
    if all(entry.submission.share.backend == LOCAL for entry in ledger.entries(plan.home)):
        return None
    return scheduler.queue()


@dataclass(frozen=True)
class _HandedOver:
    """The last submission that holds a run."""

    entry: Entry
    place: int
    attempt: int

    @property
    def job(self) -> str | None:
        """The array element that was to do the run; None where it can't be told."""
        share = self.entry.submission.share
        return None if self.entry.job is None or share.drain else f"{self.entry.job}_{self.place}"


_UNEXPLAINED = (State.LOST, State.PLANNED)
"""States in which a run's job may tell what happened."""


def _handed_over(plan: Plan) -> dict[int, _HandedOver]:
    return {
        index: _HandedOver(entry, place, attempt)
        for entry in ledger.entries(plan.home)
        for place, (index, attempt) in enumerate(entry.submission.share.runs)
        if entry.answer == ledger.TAKEN
    }


def _state(
    plan: Plan,
    run: PlannedRun,
    claim: Claim | None,
    handed: _HandedOver | None,
    queue: Queue | None,
) -> RunState:
    status = read_status(plan.directory(run))
    attempts = attempts_of(claim, status)
    if handed is not None and handed.attempt > attempts:
        waiting = handed.entry.live_job(handed.place, queue)
        if waiting is not None:
            why = queue[waiting].reason if queue is not None and waiting in queue else None
            return RunState(run, State.PENDING, attempts, status, why, waiting)
        failure = handed.entry.submission.failure(plan.home, handed.place)
        if failure is not None:
            return RunState(run, State.LOST, attempts, status, failure)
        if claim is None and status is None:
            why = f"job {handed.entry.job} ended before the run began" if handed.entry.job else None
            return RunState(run, State.PLANNED, 0, reason=why, job=handed.job)
    state, reason = standing(claim, status, queue)
    return RunState(run, state, attempts, status, reason, claim.owner.job if claim else None)


def _with_ending(state: RunState, endings: Mapping[str, tuple[State, str]]) -> RunState:
    if state.state not in _UNEXPLAINED or state.job is None or state.job not in endings:
        return state
    final, reason = endings[state.job]
    if state.state is State.PLANNED and final is State.CANCELLED:
        return state
    return replace(state, state=final, reason=reason)
