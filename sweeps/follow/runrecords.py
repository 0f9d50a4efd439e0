"""What a run's own status and claims say of it, and the state that these two make."""

from __future__ import annotations

import json
import os

from rundir import ENDED, State, Status
from rundir.files import STATUS_FILE, parse_status
from sweeps.cluster.scheduler import Queue
from sweeps.planning.plan import Plan, PlannedRun
from sweeps.records import claims
from sweeps.records.claims import Claim


class Records:
    """Reads the runs' own records and claims, and again only what has changed since the last time.

    A status costs a stat where it is the same file as before, and a read where it is not.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._root = os.fspath(plan.root)
        self._statuses: dict[str, tuple[tuple[int, int, int], Status | None]] = {}
        self._claims: dict[tuple[int, int], Claim] = {}

    def status(self, run: PlannedRun) -> Status | None:
        """Return what the run's status.json says; None before its first attempt."""
        # Strings instead of paths: for 10,000 runs pathlib takes longer than the disk.
        path = f"{self._root}/{run.directory}/{STATUS_FILE}"
        try:
            found = os.stat(path)
            version = (found.st_mtime_ns, found.st_ino, found.st_size)
            known = self._statuses.get(path)
            if known is None or known[0] != version:
                known = self._statuses[path] = (version, _read_status(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return known[1]

    def claim(self, run: PlannedRun, attempt: int) -> Claim | None:
        """Return a claim on the run, which never changes; None if there is none."""
        key = (run.index, attempt)
        if key not in self._claims:
            if not (self._plan.claims / f"{run.index}.{attempt}").exists():
                return None
            self._claims[key] = claims.read(self._plan.claims, str(run.index), attempt)
        return self._claims[key]


def _read_status(path: str) -> Status | None:
    handle = os.open(path, os.O_RDONLY)
    try:
        raw = json.loads(os.read(handle, os.fstat(handle).st_size))
    except ValueError:
        return None
    finally:
        os.close(handle)
    return parse_status(raw if isinstance(raw, dict) else None)


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
        return State.RUNNING, damage(claim) if claim.is_damaged else None
    if claim.owner.job is not None:
        return State.LOST, f"job {claim.owner.job} left the queue without ending the run"
    where = f"process {claim.owner.pid} on {claim.owner.host}"
    return State.LOST, f"{where} is gone and left no end record"


def damage(claim: Claim) -> str:
    """Say what is wrong with a claim that cannot be read."""
    return f"the claim of attempt {claim.attempt} is damaged and does not say who is at work"
