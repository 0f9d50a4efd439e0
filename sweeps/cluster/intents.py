"""What became of submissions whose launcher died before it could note SLURM's answer.

The submission's id travels in the job's name, by which SLURM is asked.
"""

from __future__ import annotations

import os
from pathlib import Path

from rundir import files
from sweeps.cluster import scheduler
from sweeps.planning.plan import Plan
from sweeps.records import ledger
from sweeps.records.ledger import SLURM, Entry


def job_name(sweep: str, submission: str) -> str:
    """Return the name a submission's job bears in squeue; it carries the submission's id."""
    return f"{sweep}.{submission}"


def settle(plan: Plan) -> None:
    """Note what SLURM made of open intents, for a command that does not launch.

    Does nothing, and asks SLURM nothing, where there is no open intent, where another process is
    launching the sweep at this moment, and for another user's sweep.

    Raises:
        ClusterError: SLURM does not answer; nothing is noted then.
    """
    if not _open(plan.home) or not _is_ours(plan.home):
        return
    with files.locked(plan.home / ledger.LOCK_FILE) as holder:
        if holder is None:
            settle_locked(plan)


def settle_locked(plan: Plan) -> None:
    """Note what SLURM made of open intents. Called by whoever holds the sweep's lock.

    Raises:
        ClusterError: SLURM does not answer; nothing is noted then.
    """
    entries = {job_name(plan.sweep, entry.submission.id): entry for entry in _open(plan.home)}
    if not entries:
        return
    found = scheduler.jobs_named(entries, min(entry.intended_at for entry in entries.values()))
    for name, entry in entries.items():
        if name in found:
            ledger.record(plan.home, ledger.TAKEN, entry.submission.id, job=found[name])
        elif entry.answer is None:
            ledger.record(plan.home, ledger.VOID, entry.submission.id)


def _open(home: Path) -> list[Entry]:
    return [
        entry
        for entry in ledger.entries(home)
        if entry.answer in {None, ledger.VOID} and entry.submission.share.backend == SLURM
    ]


def _is_ours(home: Path) -> bool:
    return home.stat().st_uid == os.getuid() and os.access(home / ledger.LOCK_FILE, os.W_OK)
