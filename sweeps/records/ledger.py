"""The ledger of a sweep: an append-only, fsynced record of what was handed to the scheduler.

    {"event": "intent",   "submission": id}             before the scheduler is called
    {"event": "job",      "submission": id, "job": …}   the scheduler took it; local: "owners"
    {"event": "refused",  "submission": id, "reason"}   the scheduler said no
    {"event": "void",     "submission": id}             the scheduler knows nothing of it
    {"event": "cancelled", "submission": id, "runs"}    the user took these runs of it back

An intent without an answer means that the launcher died in between: the scheduler is asked for the
submission's id, which travels in the job's name, before anything is submitted again. An sbatch that
outlives its launcher may still get through later: a void submission is asked for again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from rundir import UserError, files, read_json, write_json
from sweeps.records.owners import Owner
from sweeps.records.rules import Rules

LEDGER_FILE = "ledger.jsonl"
LOCK_FILE = "lock"
SUBMISSIONS_DIR = "submissions"
SUBMISSION_FILE = "submission.json"
CANCELLED_FILE = "cancelled"

SLURM, LOCAL = "slurm", "local"

TAKEN = "job"
"""The event, and answer, that the scheduler took a submission."""

REFUSED = "refused"
"""The event, and answer, that the scheduler did not take a submission."""

VOID = "void"
"""The event, and answer, that the scheduler knew nothing of a submission when it was asked."""

CANCELLED = "cancelled"
"""The event, no answer, that the user cancelled runs that waited or were at work."""

LOCAL_WORKERS = "local workers"
"""Stands for the job of a run that waits for workers on a machine without a scheduler."""


class Note(Enum):
    """What a worker leaves word of in its submission's folder."""

    FAILED = "failed"
    """It ended before it could claim anything."""
    UNSTARTED = "unstarted"
    """It handed runs back that it had not begun."""
    REQUEUED = "requeued"
    """It has asked SLURM to begin it again."""


@dataclass(frozen=True)
class Share:
    """A part of a sweep's runs, and the workers that are to do it."""

    backend: str
    """SLURM or LOCAL."""
    runs: tuple[tuple[int, int], ...]
    """(index in the plan, attempt to claim) of each run. The launcher has made sure that nobody
    works on the attempt before; a worker takes exactly this one or leaves the run alone."""
    elements: int
    """Number of workers."""
    drain: bool
    """True: every worker goes on until no run is left. False: worker i does the i-th run."""
    threads: int | None
    """CPU threads per run; None lets SLURM's allocation decide."""
    gpus: tuple[str, ...] = ()
    """Local only: the devices that the workers share out."""
    slots: int = 1
    """Runs that one worker has side by side."""
    runs_per_gpu: int | None = None
    """How many of them use one GPU; None: every run sees all that its worker has."""
    timeout_min: float = 0
    """Time limit of a worker; 0: none."""
    signal_delay_s: float = 0
    """Seconds before the limit at which the runs are told to stop."""
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True)
class Submission:
    """A share handed over as one array of workers: what its elements need to know."""

    id: str
    share: Share
    code: str
    """Content hash of the frozen code, and its folder's name."""
    cwd: str
    """Where it was launched; its runs see relative paths from here."""
    git: dict[str, Any] | None = None
    launch: str = ""
    """What the submissions of one launch have in common; the failures of all of them are counted
    together."""

    @property
    def elements(self) -> int:
        """Number of workers."""
        return self.share.elements

    def folder(self, home: Path) -> Path:
        """Return the directory of this submission's script and logs."""
        return home / SUBMISSIONS_DIR / self.id

    def write(self, home: Path) -> None:
        """Write what the workers read."""
        self.folder(home).mkdir(parents=True)
        write_json(self.folder(home) / SUBMISSION_FILE, asdict(self))

    def note(self, home: Path, kind: Note, element: int, reason: str) -> None:
        """Leave word of what became of a worker."""
        write_json(self.folder(home) / f"{kind.value}-{element}.json", {"reason": reason})

    def retract(self, home: Path, kind: Note, element: int) -> None:
        """Take a note back."""
        (self.folder(home) / f"{kind.value}-{element}.json").unlink(missing_ok=True)

    def notes(self, home: Path) -> dict[tuple[Note, int], str]:
        """Return what the workers noted, by kind and element, from one listing of the folder."""
        found = {}
        for path in sorted(self.folder(home).glob("*-*.json")):
            kind, _, element = path.stem.rpartition("-")
            if kind in {note.value for note in Note}:
                found[Note(kind), int(element)] = str((read_json(path) or {}).get("reason"))
        return found

    def cancel(self, home: Path) -> None:
        """Note that the user has cancelled it: none of its elements requeues itself any more."""
        self.folder(home).mkdir(parents=True, exist_ok=True)
        (self.folder(home) / CANCELLED_FILE).touch()

    def is_cancelled(self, home: Path) -> bool:
        """Say whether the user has cancelled it."""
        return (self.folder(home) / CANCELLED_FILE).exists()

    @classmethod
    def read(cls, home: Path, name: str) -> Submission | None:
        """Return a submission by its id; None if its record is absent or damaged."""
        record = read_json(home / SUBMISSIONS_DIR / name / SUBMISSION_FILE)
        if record is None:
            return None
        try:
            share = record["share"]
            runs = tuple((index, attempt) for index, attempt in share["runs"])
            rules = Rules.from_record(share["rules"]) if "rules" in share else Rules()
            shared = Share(**{**share, "runs": runs, "gpus": tuple(share["gpus"]), "rules": rules})
            return cls(**{**record, "share": shared})
        except (KeyError, TypeError, ValueError):
            return None


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
    intended_at: float = 0.0
    """Unix time of the intent."""
    cancelled: frozenset[int] = frozenset()
    """Indices of the runs that the user cancelled while they waited or were at work."""
    reason: str | None = None
    """The scheduler's words where it refused."""
    is_damaged: bool = False
    """Whether its record is unreadable: of the submission nothing is known but its id."""

    def live_job(self, place: int, queue: Collection[str] | None) -> str | None:
        """Return the live job that will get to the run at ``place``; None if none will."""
        if any(owner.is_alive(None) for owner in self.owners):
            return LOCAL_WORKERS
        if self.job is None or queue is None:
            return None
        elements = range(self.submission.elements) if self.submission.share.drain else [place]
        return next((f"{self.job}_{i}" for i in elements if f"{self.job}_{i}" in queue), None)


def record(home: Path, event: str, submission: str, **fields: object) -> None:
    """Append one event and make it durable before returning."""
    home.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"t": time.time(), "event": event, "submission": submission, **fields})
    handle = files.open_for_append(home / LEDGER_FILE)
    try:
        os.write(handle, line.encode() + b"\n")
        os.fsync(handle)
    finally:
        os.close(handle)


def entries(home: Path) -> list[Entry]:
    """Return every submission that the ledger knows, oldest first.

    A damaged line counts as not written: what it answered is looked up again. A submission whose
    record is damaged stays, without runs, so that its job can be found and ended.
    """
    last: dict[str, dict[str, Any]] = {}
    first: dict[str, float] = {}
    cancelled: dict[str, set[int]] = {}
    try:
        lines = (home / LEDGER_FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    for event in filter(None, map(_event, lines)):
        if event["event"] == CANCELLED:
            cancelled.setdefault(event["submission"], set()).update(event["runs"])
            continue
        last[event["submission"]] = {**last.get(event["submission"], {}), **event}
        first.setdefault(event["submission"], event["t"])
    found = []
    for name, event in last.items():
        submission = Submission.read(home, name)
        is_damaged = submission is None
        answer = event["event"] if event["event"] != "intent" else None
        owners = tuple(Owner.from_record(owner) for owner in event.get("owners", ()))
        entry = Entry(
            submission or _unreadable(name, SLURM if event.get("job") else LOCAL),
            answer,
            event.get("job"),
            owners,
            first[name],
            frozenset(cancelled.get(name, ())),
            event.get("reason"),
            is_damaged,
        )
        found.append(entry)
    return found


def damage(home: Path, known: Collection[Entry]) -> list[str]:
    """Say in a line each which submissions are unreadable, and what that hides."""
    return [
        f"{entry.submission.folder(home) / SUBMISSION_FILE} can't be read; which runs "
        f"{f'job {entry.job}' if entry.job else 'it'} was to do is not known"
        for entry in known
        if entry.is_damaged and entry.answer != REFUSED
    ]


def _unreadable(name: str, backend: str) -> Submission:
    return Submission(name, Share(backend, (), 0, drain=False, threads=None), code="", cwd="")


def _event(line: bytes) -> dict[str, Any] | None:
    """Return what a line tells; None if it was torn by a kill in the middle of the write."""
    try:
        event = json.loads(line)
        kinds: dict[str, type | tuple[type, ...]] = {"event": str, "submission": str}
        kinds["t"] = (int, float)
        if event["event"] == CANCELLED:
            kinds["runs"] = list
        for owner in event.get("owners", ()):
            Owner.from_record(owner)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    is_whole = all(isinstance(event.get(key), kind) for key, kind in kinds.items())
    return event if is_whole else None


@contextmanager
def locked(home: Path, sweep: str) -> Iterator[None]:
    """Hold the sweep's lock.

    Raises:
        UserError: somebody else holds it, or the directory can't be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / LOCK_FILE).touch()
    except OSError as error:
        raise UserError(f"can't write {home}: {error.strerror}") from None
    with files.locked(home / LOCK_FILE) as holder:
        if holder is not None:
            raise UserError(f"sweep {sweep} is being launched already, by {holder}")
        yield
