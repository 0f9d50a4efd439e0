"""Which job, if any, will go on with a run whose attempt is over, without anybody's doing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rundir import DONE, State
from sweeps.cluster.scheduler import Queue, UnknownQueue
from sweeps.records.ledger import Note, Share

_QUEUED = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
"""squeue's words for an element that waits; what ran in it before is over."""

_ENDING = "COMPLETING"
"""squeue's word for an element that is being cleaned up, to be gone or to wait once more."""


def is_leaving(job: str | None, queue: Queue | None) -> bool:
    """Say whether SLURM is cleaning up after an element, which then is gone or waits once more.

    Which of the two, nobody can tell from outside before it is.
    """
    here = queue.get(job) if queue is not None and job is not None else None
    return here is not None and here.state == _ENDING


def next_job(
    share: Share,
    made: int,
    state: State,
    job: str | None,
    queue: Queue | None,
    notes: Callable[[], Mapping[tuple[Note, int], str]],
    live_worker: Callable[[], str | None],
) -> str | None:
    """Return the live job that will go on with the run; None if none will.

    Args:
        share: that the attempt belongs to.
        made: times that it was begun again there.
        state: of the attempt: running as far as its claim tells, lost, or how it ended.
        job: the element that worked on it; None for local workers.
        queue: what squeue shows.
        notes: reads what the submission's workers left word of.
        live_worker: returns the live job that will get to the run, if any.
    """
    if state in DONE or isinstance(queue, UnknownQueue):
        return None
    here = queue.get(job) if queue is not None and job is not None else None
    refused = state is State.RUNNING or share.rules.refusal(state, made) is not None
    if job is not None and here is not None:
        if here.state in _QUEUED and not (share.drain and refused and state is not State.RUNNING):
            return job
        if here.state == _ENDING:
            element = int(job.rpartition("_")[2]) if "_" in job else 0
            return (
                job if (Note.REQUEUED, element) in notes() and state is not State.RUNNING else None
            )
        if state is State.LOST:  # it begins again just now
            return job
    if refused:
        return None
    if share.drain:
        return live_worker()
    return job if here is not None else None
