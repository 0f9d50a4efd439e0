"""What was handed over for a run last: to which submission, and what has become of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from rundir import DONE, State
from sweeps.cluster import onward
from sweeps.cluster.intents import job_name
from sweeps.cluster.scheduler import Queue
from sweeps.planning.plan import Plan
from sweeps.records import ledger
from sweeps.records.ledger import SLURM, Entry, Note

SETTLED = DONE | {State.RUNNING}
"""States of a run that a later attempt which was never begun changes nothing about."""


class Submitted:
    """A submission as one survey sees it: what holds for all its runs is found out once."""

    def __init__(self, entry: Entry, home: Path, queue: Queue | None) -> None:
        self.entry = entry
        self.share = entry.submission.share
        self._home = home
        self._queue = queue

    @cached_property
    def notes(self) -> Mapping[tuple[Note, int], str]:
        """What the workers left word of."""
        return self.entry.submission.notes(self._home)

    @cached_property
    def _first_notes(self) -> Mapping[Note, str]:
        return {kind: reason for (kind, _), reason in reversed(list(self.notes.items()))}

    @cached_property
    def _live_worker(self) -> str | None:
        return self.entry.live_job(0, self._queue)

    def note(self, kind: Note, place: int) -> str | None:
        """Return what a worker that was to do the run said of it; None if it said nothing."""
        return self._first_notes.get(kind) if self.share.drain else self.notes.get((kind, place))

    def live_job(self, place: int) -> str | None:
        """Return the live job that will get to the run; None if none will."""
        return self._live_worker if self.share.drain else self.entry.live_job(place, self._queue)


@dataclass(frozen=True)
class Handover:
    """The last submission that holds a run."""

    by: Submitted
    place: int
    """Of the run in it."""
    attempt: int
    """The first that the submission may make of the run."""

    def next_job(
        self, state: State, attempt: int, job: str | None, queue: Queue | None
    ) -> str | None:
        """Return the live job that goes on with the run by itself; None if none does."""
        if attempt < self.attempt or state in DONE or state is State.PLANNED:
            return None
        return onward.next_job(
            self.by.share,
            attempt - self.attempt,
            state,
            job,
            queue,
            lambda: self.by.notes,
            lambda: self.by.live_job(self.place),
        )

    def has_come_to_nothing(self, state: State, attempts: int, queue: Queue | None) -> bool:
        """Say whether SLURM ended the attempt after those made before it had begun.

        Workers that handed it back are another matter.
        """
        if self.attempt <= attempts or state in SETTLED:
            return False
        is_gone = queue is not None and self.by.live_job(self.place) is None
        is_told = self.by.note(Note.UNSTARTED, self.place) is not None
        return self.by.entry.job is not None and is_gone and not is_told

    @property
    def job(self) -> str | None:
        """The array element that was to do the run; the array where each was to. None: local."""
        array = self.by.entry.job
        return array if array is None or self.by.share.drain else f"{array}_{self.place}"


def latest(plan: Plan, entries: Sequence[Entry], queue: Queue | None) -> dict[int, Handover]:
    """Return by its index, of each run that a scheduler took, the last submission that holds it."""
    found = {}
    for entry in entries:
        if entry.answer == ledger.TAKEN:
            by = Submitted(entry, plan.home, queue)
            for place, (index, attempt) in enumerate(by.share.runs):
                found[index] = Handover(by, place, attempt)
    return found


def denials(entries: Sequence[Entry]) -> dict[int, tuple[int, str]]:
    """Return the runs whose last submission SLURM did not take: the attempt, and why."""
    found: dict[int, tuple[int, str]] = {}
    for entry in entries:
        for index, attempt in entry.submission.share.runs:
            found.pop(index, None)
            if entry.answer == ledger.REFUSED:
                found[index] = (attempt, f"not submitted: {entry.reason}")
            elif entry.answer is None and may_be_taken(entry):
                why = "SLURM has not said whether it took it; launching again looks that up"
                found[index] = (attempt, why)
    return found


def may_be_taken(entry: Entry) -> bool:
    """Say whether SLURM may hold a job for a submission of which the ledger knows none."""
    return entry.answer in {None, ledger.VOID} and entry.submission.share.backend == SLURM


def answered(plan: Plan, entry: Entry, queue: Queue | None) -> Entry:
    """Return an entry with the job that squeue shows for it where the ledger has none.

    A launcher that is handing over, or was killed meanwhile, has not noted it.
    """
    if queue is None or not may_be_taken(entry):
        return entry
    job = queue.jobs.get(job_name(plan.sweep, entry.submission.id))
    return entry if job is None else replace(entry, answer=ledger.TAKEN, job=job)


def is_live(entry: Entry, queue: Queue | None) -> bool:
    """Say whether any worker of a submission may be at work, or come to be."""
    share = entry.submission.share
    places = 1 if share.drain else share.elements  # a drain's are asked after together
    return any(entry.live_job(place, queue) for place in range(places))
