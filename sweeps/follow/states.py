"""One truthful state per run: from its own record, then squeue, then sacct."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import TypeAlias

from rundir import ENDED, ClusterError, State, Status
from sweeps.cluster import onward, scheduler
from sweeps.cluster.scheduler import Ending, Queue
from sweeps.follow import explanation, handover
from sweeps.follow.explanation import cause_of
from sweeps.follow.handover import SETTLED, Handover
from sweeps.follow.runrecords import Records, attempts_of, damage, standing
from sweeps.follow.runstate import RunState
from sweeps.planning.plan import Plan, PlannedRun
from sweeps.records import claims, ledger
from sweeps.records.claims import Claim
from sweeps.records.ledger import Entry, Note

Accounting: TypeAlias = Callable[[Collection[str]], Mapping[str, Ending]]
"""Tells of jobs that have left the queue how they ended; knows only some of them."""


def _accounting(jobs: Collection[str]) -> Mapping[str, Ending]:
    try:
        return scheduler.endings(jobs)
    except ClusterError:
        return {}


def survey(
    plan: Plan,
    queue: Queue | None = None,
    *,
    entries: Sequence[Entry] | None = None,
    records: Records | None = None,
    accounting: Accounting = _accounting,
) -> list[RunState]:
    """Return the state of every run, in the plan's order.

    Costs one listing of the claims and one small file a run.

    Args:
        plan: the sweep.
        queue: from :func:`sweeps.cluster.scheduler.queue`; None where there is no scheduler.
        entries: the sweep's ledger, where it has been read already.
        records: what an earlier survey has read of the runs' records.
        accounting: asked how jobs ended that neither the runs' records nor squeue tell of.
    """
    held = claims.attempts(plan.claims)
    entries = ledger.entries(plan.home) if entries is None else entries
    entries = [handover.answered(plan, entry, queue) for entry in entries]
    handed, denied = handover.latest(plan, entries, queue), handover.denials(entries)
    records = Records(plan) if records is None else records
    is_idle = cache(lambda: not any(handover.is_live(entry, queue) for entry in entries))
    states = [
        _present(run, held.get(str(run.index), 0), handed.get(run.index), queue, records, is_idle)
        for run in plan.runs
    ]
    states = [explanation.with_cancellation(state, handed.get(state.run.index)) for state in states]
    if queue is not None:
        states = explanation.with_endings(states, queue.endings)
        gone = {state.job for state in states if state.job and explanation.is_unexplained(state)}
        states = explanation.with_endings(states, accounting(gone)) if gone else states
    return [explanation.with_denial(state, denied.get(state.run.index)) for state in states]


def queue_of(plan: Plan, entries: Sequence[Entry] | None = None) -> Queue | None:
    """Ask squeue, unless SLURM surely never took a job of the sweep.

    Raises:
        ClusterError: SLURM does not answer, or is not on this machine.
    """
    known = ledger.entries(plan.home) if entries is None else entries
    if not any(entry.job or handover.may_be_taken(entry) for entry in known):
        return None
    # The jobs are those of whoever launched the sweep, who need not be the one that asks.
    return scheduler.queue(plan.home.stat().st_uid)


def _present(
    run: PlannedRun,
    attempt: int,
    handed: Handover | None,
    queue: Queue | None,
    records: Records,
    is_idle: Callable[[], bool],
) -> RunState:
    """Return where a run stands, whose latest listed claim is that of ``attempt``."""
    status = records.status(run)
    if status is not None and status.state in ENDED and status.attempt >= attempt:
        # Who held the claim matters only while the attempt has no end on record.
        return _state(run, status, None, handed, queue)
    # An attempt may have begun since the claims were listed.
    begun = status.attempt if status is not None else 0
    claim = (records.claim(run, begun) if begun > attempt else None) or records.claim(run, attempt)
    if claim is not None and claim.is_damaged and is_idle():
        why = f"{damage(claim)}; nothing of the sweep is at work any more"
        return RunState(run, State.LOST, attempts_of(claim, status), status, why)
    found = _state(run, status, claim, handed, queue)
    if found.state is State.LOST:
        # It may have ended between the look at its record and the look at its process.
        found = _state(run, records.status(run), claim, handed, queue)
    return found


def _state(
    run: PlannedRun,
    status: Status | None,
    claim: Claim | None,
    handed: Handover | None,
    queue: Queue | None,
) -> RunState:
    attempts = attempts_of(claim, status)
    if handed is not None and handed.attempt > attempts:
        unbegun = _unbegun(run, status, claim, handed, queue)
        if unbegun is not None:
            return unbegun
    state, reason = standing(claim, status, queue)
    if handed is not None and handed.has_come_to_nothing(state, attempts, queue):
        why = f"attempt {handed.attempt} (job {handed.job}) ended before the run began"
        return RunState(run, State.LOST, attempts, status, why, handed.job, is_unbegun=True)
    job = claim.owner.job if claim else status.job if status else None
    if job is None and handed is not None and handed.attempt == attempts:
        job = handed.job
    node = status.node or status.host if status and status.attempt == attempts else None
    going_on = handed.next_job(state, attempts, job, queue) if handed else None
    if going_on is not None:
        element = queue[going_on] if queue is not None and going_on in queue else None
        before = f"goes on after {state}: {cause_of(reason)}" if reason else None
        why = "; ".join(part for part in (element and element.why, before) if part)
        return RunState(run, State.PENDING, attempts, status, why or None, going_on)
    is_leaving = onward.is_leaving(job, queue)
    return RunState(run, state, attempts, status, reason, job, node, is_leaving=is_leaving)


def _unbegun(
    run: PlannedRun,
    status: Status | None,
    claim: Claim | None,
    handed: Handover,
    queue: Queue | None,
) -> RunState | None:
    """Return where a run stands of which its latest submission has made no attempt.

    None where that tells nothing: then its latest attempt does.
    """
    attempts = attempts_of(claim, status)
    waiting = handed.by.live_job(handed.place)
    if waiting is not None:
        element = queue[waiting] if queue is not None and waiting in queue else None
        why, node = (element.why, element.node) if element else (None, None)
        return RunState(run, State.PENDING, attempts, status, why, waiting, node)
    unstarted = handed.by.note(Note.UNSTARTED, handed.place)
    if unstarted is not None and standing(claim, status, queue)[0] not in SETTLED:
        return RunState(
            run,
            State.PLANNED,
            attempts,
            status,
            unstarted,
            handed.job,
            is_unbegun=True,
            is_handed_back=True,
        )
    failure = handed.by.note(Note.FAILED, handed.place)
    if failure is not None:
        ended = queue.endings.get(handed.job or "") if queue is not None else None
        node = ended.node if ended else None
        return RunState(run, State.LOST, attempts, status, failure, node=node, is_unbegun=True)
    if claim is None and status is None:
        array = handed.by.entry.job
        why = f"job {array} ended before the run began" if array else None
        return RunState(run, State.PLANNED, 0, reason=why, job=handed.job, is_unbegun=True)
    return None
