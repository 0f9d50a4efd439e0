"""Second stages that wait, not launched yet, for the jobs of their first stage."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rundir import read_json
from rundir.files import PLAN_FILE, SWEEP_DIR
from sweeps.cluster import scheduler
from sweeps.cluster.scheduler import Queue
from sweeps.planning.plan import SUCCESSOR_DIR

WAITING_FILE = "waiting.json"
"""Tells which job carries out which command, and after which sweep."""


@dataclass(frozen=True)
class Successor:
    """A second stage that has no plan yet, and the job that launches it."""

    sweep: str
    directory: str
    after: str | None
    """Name of the first stage."""
    jobs: tuple[str, ...]
    """SLURM's ids of the first stage's jobs that it waits for."""
    job: str
    """SLURM's id of the job that launches it."""
    error: str | None
    """Why that job did not; None as long as it has said nothing of the kind."""

    def is_queued(self, queue: Queue) -> bool:
        """Say whether the job is still to come or at it."""
        return self.job in queue or f"{self.job}_0" in queue

    @property
    def record(self) -> dict[str, object]:
        """What ``--json`` tells of it."""
        first = {"sweep": self.after, "jobs": list(self.jobs)}
        return {"sweep": self.sweep, "directory": self.directory, "waits_for": first}

    @property
    def user(self) -> int:
        """Id of the user whose job it is."""
        return os.stat(f"{self.directory}/{SWEEP_DIR}").st_uid

    def __str__(self) -> str:
        if self.error is not None:
            return f"was not launched: {self.error}"
        return f"waits for {self.after} (job {', '.join(self.jobs)}); job {self.job} launches it"

    def told(self, queue: Queue | None) -> str:
        """Say how it stands; without a queue, that its job is not in one any more."""
        if self.error is not None or (queue is not None and self.is_queued(queue)):
            return str(self)
        return f"is not launched: its job {self.job} is gone; launch it again"


def read(root: Path) -> Successor | None:
    """Return the second stage that waits in a directory; None if none does."""
    folder = root / SWEEP_DIR / SUCCESSOR_DIR
    record = read_json(folder / WAITING_FILE)
    if (
        not record
        or not isinstance(record.get("job"), str)
        or (root / SWEEP_DIR / PLAN_FILE).exists()
    ):
        return None
    logs = sorted(folder.glob(f"{record['job']}_*log.out"), key=os.path.getmtime)
    lines = logs[-1].read_text(errors="replace").splitlines() if logs else []
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    jobs = tuple(record.get("jobs", ()))
    error = said[-1] if said else None
    return Successor(root.name, str(root), record.get("after"), jobs, record["job"], error)


def waiting(root: Path) -> Successor | None:
    """Return the second stage of a directory if its job is in the queue; costs one squeue.

    Raises:
        ClusterError: SLURM does not answer.
    """
    found = read(root)
    if found is None or found.error is not None:
        return None
    return found if found.is_queued(scheduler.queue(found.user)) else None


def forget(root: Path) -> None:
    """Take the note away that a second stage waits."""
    (root / SWEEP_DIR / SUCCESSOR_DIR / WAITING_FILE).unlink(missing_ok=True)
