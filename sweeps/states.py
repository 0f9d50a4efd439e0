"""One truthful state per run: from its own record, then squeue, then sacct."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rundir import DONE, ENDED, State, Status, read_status
from sweeps import claims, ledger, scheduler
from sweeps.claims import Claim
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
    waiting = _waiting(plan, queue)
    states = [_state(plan, run, held.get(str(run.index)), waiting, queue) for run in plan.runs]
    lost = {s.job for s in states if s.state is State.LOST and s.job}
    endings = scheduler.endings(lost) if lost else {}
    return [_with_ending(s, endings) for s in states]


def _state(
    plan: Plan,
    run: PlannedRun,
    claim: Claim | None,
    waiting: Mapping[int, tuple[int, str]],
    queue: Queue | None,
) -> RunState:
    attempts = claim.attempt if claim else 0
    if run.index in waiting and waiting[run.index][0] > attempts:
        return RunState(run, State.PENDING, attempts, job=waiting[run.index][1])
    if claim is None:
        return RunState(run, State.PLANNED, 0)
    status = read_status(plan.directory(run))
    job = claim.owner.job
    if status is not None and status.attempt == attempts and status.state in ENDED:
        return RunState(run, status.state, attempts, status, status.reason, job)
    if claim.owner.is_alive(queue):
        return RunState(run, State.RUNNING, attempts, status, job=job)
    reason = f"process {claim.owner.pid} on {claim.owner.host} is gone and left no end record"
    if job is not None:
        reason = f"job {job} left the queue without ending the run"
    return RunState(run, State.LOST, attempts, status, reason, job)


def _waiting(plan: Plan, queue: Queue | None) -> dict[int, tuple[int, str]]:
    """Return run index → (attempt, job) for the runs that a live submission will still get to."""
    found = {}
    for entry in ledger.entries(plan.home):
        for place, (index, attempt) in enumerate(entry.submission.runs):
            job = entry.live_job(place, queue)
            if job is not None:
                found[index] = (attempt, job)
    return found


def _with_ending(state: RunState, endings: Mapping[str, tuple[State, str]]) -> RunState:
    if state.state is not State.LOST or state.job is None or state.job not in endings:
        return state
    final, reason = endings[state.job]
    return RunState(state.run, final, state.attempts, state.status, reason, state.job)
