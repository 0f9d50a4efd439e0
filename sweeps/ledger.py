"""The ledger of a sweep: an append-only, fsynced record of what was handed to the scheduler.

    {"event": "intent",   "submission": id}             before the scheduler is called
    {"event": "job",      "submission": id, "job": …}   the scheduler took it; local: "owners"
    {"event": "refused",  "submission": id, "reason"}   the scheduler said no
    {"event": "void",     "submission": id}             never reached the scheduler

An intent without an answer means that the launcher died in between: the scheduler is asked for the
submission's id, which travels in the job's name, before anything is submitted again.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rundir import UserError, read_json, write_json
from rundir.files import open_for_append
from sweeps.owners import Owner

LEDGER_FILE = "ledger.jsonl"
LOCK_FILE = "lock"
SUBMISSIONS_DIR = "submissions"
SUBMISSION_FILE = "submission.json"


@dataclass(frozen=True)
class Submission:
    """One array of workers: what its elements need to know."""

    id: str
    backend: str
    """``slurm`` or ``local``."""
    runs: tuple[tuple[int, int], ...]
    """(index in the plan, attempt to claim) of each run. The launcher has made sure that nobody
    works on the attempt before; a worker takes exactly this one or leaves the run alone."""
    elements: int
    """Number of workers."""
    drain: bool
    """True: every worker goes on until no run is left. False: worker i does the i-th run."""
    code: str
    """Content hash of the frozen code, and its folder's name."""
    threads: int | None
    """CPU threads per run; None lets SLURM's allocation decide."""
    gpus: tuple[str, ...] = ()
    """Local only: the devices that the workers share out."""
    git: dict[str, Any] | None = None

    def folder(self, home: Path) -> Path:
        """Return the directory of this submission's script and logs."""
        return home / SUBMISSIONS_DIR / self.id

    def write(self, home: Path) -> None:
        """Write what the workers read."""
        self.folder(home).mkdir(parents=True)
        write_json(self.folder(home) / SUBMISSION_FILE, asdict(self))

    @classmethod
    def read(cls, home: Path, name: str) -> Submission | None:
        """Return a submission by its id; None if its record is absent."""
        record = read_json(home / SUBMISSIONS_DIR / name / SUBMISSION_FILE)
        if record is None:
            return None
        runs = tuple((index, attempt) for index, attempt in record["runs"])
        return cls(**{**record, "runs": runs, "gpus": tuple(record["gpus"])})


@dataclass(frozen=True)
class Entry:
    """What the ledger says of one submission."""

    submission: Submission
    answer: str | None
    """``job``, ``refused``, ``void``, or None when no answer was recorded."""
    job: str | None
    """SLURM's id of the array; None for local workers."""
    owners: tuple[Owner, ...] = ()
    """Local workers' processes."""

    def live_job(self, place: int, queue: Collection[str] | None) -> str | None:
        """Return the live job that will get to the run at ``place``; None if none will."""
        for owner in self.owners:
            if owner.is_alive(None):
                return f"process {owner.pid}"
        if self.job is None or queue is None:
            return None
        elements = range(self.submission.elements) if self.submission.drain else [place]
        return next((f"{self.job}_{i}" for i in elements if f"{self.job}_{i}" in queue), None)


def record(home: Path, event: str, submission: str, **fields: object) -> None:
    """Append one event and make it durable before returning."""
    home.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"t": time.time(), "event": event, "submission": submission, **fields})
    handle = open_for_append(home / LEDGER_FILE)
    try:
        os.write(handle, line.encode() + b"\n")
        os.fsync(handle)
    finally:
        os.close(handle)


def entries(home: Path) -> list[Entry]:
    """Return every submission that the ledger knows, oldest first."""
    last: dict[str, dict[str, Any]] = {}
    try:
        lines = (home / LEDGER_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # torn by a kill in the middle of the write
            continue
        last[event["submission"]] = {**last.get(event["submission"], {}), **event}
    found = []
    for name, event in last.items():
        submission = Submission.read(home, name)
        if submission is not None:
            answer = event["event"] if event["event"] != "intent" else None
            owners = tuple(Owner(**owner) for owner in event.get("owners", ()))
            found.append(Entry(submission, answer, event.get("job"), owners))
    return found


@contextmanager
def locked(home: Path, sweep: str) -> Iterator[None]:
    """Hold the sweep's lock; the kernel releases it if this process dies.

    Raises:
        UserError: somebody else holds it, or the directory can't be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle = os.open(home / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"can't write {home}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown"
            raise UserError(f"sweep {sweep} is being launched already, by {holder}") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
