"""Putting this worker's own array element back into SLURM's queue."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rundir import ClusterError
from sweeps.cluster.scheduler import ask
from sweeps.records.ledger import LOCAL, Note, Share, Submission
from sweeps.records.owners import Owner, myself


def this_element(share: Share | None = None) -> str | None:
    """Return this process's SLURM array element or job, e.g. ``1234_5``; None outside SLURM.

    Args:
        share: the worker's. A local worker is no element: the job around it is the user's own.
    """
    if share is not None and share.backend == LOCAL:
        return None
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def restarts(share: Share | None = None) -> int:
    """Return how often SLURM has begun this element again, whoever asked for it."""
    if this_element(share) is None:
        return 0
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def claimant(share: Share | None = None) -> Owner:
    """Return this process as the owner of what it claims."""
    return myself(this_element(share), restarts(share))


def requeue(submission: Submission, home: Path, element: int) -> str | None:
    """Have SLURM begin this element again; return why it does not, None if it does.

    SLURM then kills the element with SIGTERM and, KillWait later, SIGKILL: this must be the last
    thing that a worker does. Only a running element may be requeued by its own wish. One that was
    cancelled, or that SLURM requeues already (a preemption, the user's ``scontrol requeue``), is
    completing, and ``scontrol requeue`` would bring back what the user has cancelled. A worker on a
    node that SLURM had given up may ask after the next incarnation of its element, which is running
    and healthy: the number of restarts tells them apart.

    Args:
        submission: the one that this worker belongs to.
        home: the sweep's own directory.
        element: this worker's number in the submission.
    """
    me = this_element(submission.share)
    if me is None:
        return "outside SLURM there is no queue"
    if submission.is_cancelled(home):
        return "the sweep was cancelled"
    try:
        state = ask("squeue", "--noheader", f"--jobs={me}", "--format=%T").strip()
        if state != "RUNNING":
            return f"SLURM ends the job itself (squeue: {state or 'not there'})"
        begun = _restarts_of(me)
        if begun is not None and begun != restarts(submission.share):
            return f"SLURM has begun the job again already, as restart {begun}"
        submission.note(home, Note.REQUEUED, element, f"by itself, from {me}")
        ask("scontrol", "requeue", me)
    except ClusterError as error:
        submission.retract(home, Note.REQUEUED, element)
        return str(error)
    return None


def _restarts_of(element: str) -> int | None:
    """Return how often SLURM has begun an element again; None if it does not say.

    Raises:
        ClusterError: SLURM does not answer.
    """
    found = re.search(r"\bRestarts=(\d+)", ask("scontrol", "show", "job", element))
    return int(found[1]) if found else None
