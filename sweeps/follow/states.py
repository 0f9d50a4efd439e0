"""One truthful state per run: from its own record, then squeue, then sacct."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TypeAlias

from rundir import DONE, ENDED, ClusterError, State, Status
from rundir.files import STATUS_FILE, parse_status
from sweeps.cluster import onward, scheduler
from sweeps.cluster.intents import job_name
from sweeps.cluster.scheduler import Ending, Queue
from sweeps.planning.plan import Plan, PlannedRun
from sweeps.records import claims, ledger
from sweeps.records.claims import Claim
from sweeps.records.ledger import SLURM, Entry, Note

Accounting: TypeAlias = Callable[[Collection[str]], Mapping[str, Ending]]
"""Tells of jobs that have left the queue how they ended; knows only some of them."""


def _accounting(jobs: Collection[str]) -> Mapping[str, Ending]:
    try:
        return scheduler.endings(jobs)
    except ClusterError:
        return {}


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
    node: str | None = None
    """The machine of the latest attempt, by SLURM's name for it where SLURM knows."""
    is_by_user: bool = False
    """True of a run that ``cancel`` has ended: it is no failure."""
    is_unbegun: bool = False
    """True where the attempt submitted last came to nothing before it began: the run's own record
    and log are of an earlier one."""
    is_handed_back: bool = False
    """True where the worker that was to begin it left word that it did not."""
    is_leaving: bool = False
    """True while SLURM cleans up after its job, and may then have it wait once more."""

    @property
    def is_wanted(self) -> bool:
        """Say whether launching again should submit the run."""
        return self.state in ENDED - DONE or self.state is State.PLANNED

    @property
    def is_bad(self) -> bool:
        """Say whether the run has ended as it should not have."""
        return self.state in ENDED - DONE and not self.is_by_user

    @property
    def is_open(self) -> bool:
        """Say whether something may still come of it without anybody's doing."""
        if self.state in {State.PREEMPTED, State.LOST}:
            return self.is_leaving
        return self.state in {State.PENDING, State.RUNNING}


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
    entries = [_answered(plan, entry, queue) for entry in entries]
    handed, denied = _handed_over(plan, entries, queue), _denials(entries)
    records = Records(plan) if records is None else records
    is_idle = cache(lambda: not any(_is_live(entry, queue) for entry in entries))
    states = [
        _present(run, held.get(str(run.index), 0), handed.get(run.index), queue, records, is_idle)
        for run in plan.runs
    ]
    states = [_with_cancellation(state, handed.get(state.run.index)) for state in states]
    if queue is not None:
        states = _with_endings(states, queue.endings)
        gone = {state.job for state in states if state.job and _is_unexplained(state)}
        states = _with_endings(states, accounting(gone)) if gone else states
    return [_with_denial(state, denied.get(state.run.index)) for state in states]


def _present(
    run: PlannedRun,
    attempt: int,
    handed: _HandedOver | None,
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
        why = f"{_damage(claim)}; nothing of the sweep is at work any more"
        return RunState(run, State.LOST, attempts_of(claim, status), status, why)
    found = _state(run, status, claim, handed, queue)
    if found.state is State.LOST:
        # It may have ended between the look at its record and the look at its process.
        found = _state(run, records.status(run), claim, handed, queue)
    return found


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
        return State.RUNNING, _damage(claim) if claim.is_damaged else None
    if claim.owner.job is not None:
        return State.LOST, f"job {claim.owner.job} left the queue without ending the run"
    where = f"process {claim.owner.pid} on {claim.owner.host}"
    return State.LOST, f"{where} is gone and left no end record"


def _damage(claim: Claim) -> str:
    return f"the claim of attempt {claim.attempt} is damaged and does not say who is at work"


def queue_of(plan: Plan, entries: Sequence[Entry] | None = None) -> Queue | None:
    """Ask squeue, unless SLURM surely never took a job of the sweep.

    Raises:
        ClusterError: SLURM does not answer, or is not on this machine.
    """
    known = ledger.entries(plan.home) if entries is None else entries
    if not any(entry.job or _may_be_taken(entry) for entry in known):
        return None
    # The jobs are those of whoever launched the sweep, who need not be the one that asks.
    return scheduler.queue(plan.home.stat().st_uid)


class _Handed:
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
class _HandedOver:
    """The last submission that holds a run."""

    by: _Handed
    place: int
    attempt: int

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
        if self.attempt <= attempts or state in _SETTLED:
            return False
        is_gone = queue is not None and self.by.live_job(self.place) is None
        is_told = self.by.note(Note.UNSTARTED, self.place) is not None
        return self.by.entry.job is not None and is_gone and not is_told

    @property
    def job(self) -> str | None:
        """The array element that was to do the run; the array where each was to. None: local."""
        array = self.by.entry.job
        return array if array is None or self.by.share.drain else f"{array}_{self.place}"


_INTERRUPTED = frozenset({State.PLANNED, State.PREEMPTED, State.CANCELLED, State.LOST})
"""States that a run may be in because its job was cancelled; others tell of something else."""

_SETTLED = DONE | {State.RUNNING}
"""States of a run that a later attempt which was never begun changes nothing about."""

_NOT_REQUEUED = "; not requeued"
"""Begins what a worker adds to the reason of a run that does not go on by itself."""


def _is_unexplained(state: RunState) -> bool:
    """Say whether the run's job may tell what happened, or who took the job from it."""
    return state.state in {State.LOST, State.PLANNED, State.PREEMPTED} and not state.is_leaving


def _handed_over(
    plan: Plan, entries: Sequence[Entry], queue: Queue | None
) -> dict[int, _HandedOver]:
    found = {}
    for entry in entries:
        if entry.answer == ledger.TAKEN:
            by = _Handed(entry, plan.home, queue)
            for place, (index, attempt) in enumerate(by.share.runs):
                found[index] = _HandedOver(by, place, attempt)
    return found


def _is_live(entry: Entry, queue: Queue | None) -> bool:
    """Say whether any worker of a submission may be at work, or come to be."""
    share = entry.submission.share
    places = 1 if share.drain else share.elements  # a drain's are asked after together
    return any(entry.live_job(place, queue) for place in range(places))


def _denials(entries: Sequence[Entry]) -> dict[int, tuple[int, str]]:
    """Return the runs whose last submission SLURM did not take: the attempt, and why."""
    found: dict[int, tuple[int, str]] = {}
    for entry in entries:
        for index, attempt in entry.submission.share.runs:
            found.pop(index, None)
            if entry.answer == ledger.REFUSED:
                found[index] = (attempt, f"not submitted: {entry.reason}")
            elif entry.answer is None and _may_be_taken(entry):
                why = "SLURM has not said whether it took it; launching again looks that up"
                found[index] = (attempt, why)
    return found


def _may_be_taken(entry: Entry) -> bool:
    return entry.answer in {None, ledger.VOID} and entry.submission.share.backend == SLURM


def _answered(plan: Plan, entry: Entry, queue: Queue | None) -> Entry:
    """Return an entry with the job that squeue shows for it where the ledger has none.

    A launcher that is handing over, or was killed meanwhile, has not noted it.
    """
    if queue is None or not _may_be_taken(entry):
        return entry
    job = queue.jobs.get(job_name(plan.sweep, entry.submission.id))
    return entry if job is None else replace(entry, answer=ledger.TAKEN, job=job)


def _state(
    run: PlannedRun,
    status: Status | None,
    claim: Claim | None,
    handed: _HandedOver | None,
    queue: Queue | None,
) -> RunState:
    attempts = attempts_of(claim, status)
    if handed is not None and handed.attempt > attempts:
        waiting = handed.by.live_job(handed.place)
        if waiting is not None:
            element = queue[waiting] if queue is not None and waiting in queue else None
            why, node = (element.why, element.node) if element else (None, None)
            return RunState(run, State.PENDING, attempts, status, why, waiting, node)
        unstarted = handed.by.note(Note.UNSTARTED, handed.place)
        if unstarted is not None and standing(claim, status, queue)[0] not in _SETTLED:
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
        before = f"goes on after {state}: {_without_denial(reason)}" if reason else None
        why = "; ".join(part for part in (element and element.why, before) if part)
        return RunState(run, State.PENDING, attempts, status, why or None, going_on)
    is_leaving = onward.is_leaving(job, queue)
    return RunState(run, state, attempts, status, reason, job, node, is_leaving=is_leaving)


def _without_denial(reason: str) -> str:
    return reason.partition(_NOT_REQUEUED)[0]


def _with_cancellation(state: RunState, handed: _HandedOver | None) -> RunState:
    if handed is None or state.run.index not in handed.by.entry.cancelled:
        return state
    if state.state not in _INTERRUPTED:
        return state
    why = "cancelled by the user"
    if (
        state.is_unbegun
        or state.state is State.PLANNED
        or (state.status and state.status.step is None)
    ):
        why += " before it began"
    elif state.state is State.PREEMPTED and state.reason:
        why += f"; {_without_denial(state.reason)}"
    return replace(state, state=State.CANCELLED, reason=why, is_by_user=True)


def _with_denial(state: RunState, denied: tuple[int, str] | None) -> RunState:
    """Say of a run that waits for another launch why the last one brought nothing."""
    if denied is None or not state.is_wanted or denied[0] <= state.attempts:
        return state
    attempt, why = denied
    said = f"{state.reason}; attempt {attempt}: {why}" if state.reason else why
    return replace(state, reason=said)


def _with_endings(states: list[RunState], endings: Mapping[str, Ending]) -> list[RunState]:
    telling = _telling_elements(endings)
    return [_with_ending(state, endings, telling) for state in states]


def _telling_elements(endings: Mapping[str, Ending]) -> dict[str, str]:
    """Return the element of each array that tells why none works any more: the last one to end.

    Of several that ended in the same second, one that failed tells more than a cancelled one.
    """

    def telling(element: str) -> tuple[str, bool]:
        return endings[element].at, endings[element].state is not State.CANCELLED

    found: dict[str, str] = {}
    for element in endings:
        array = element.partition("_")[0]
        found[array] = max(found.get(array, element), element, key=telling)
    return found


def _with_ending(
    state: RunState, endings: Mapping[str, Ending], telling: Mapping[str, str]
) -> RunState:
    job = state.job
    if job is None or not _is_unexplained(state):
        return state
    job = job if job in endings else telling.get(job)
    if job is None:
        return state
    ending, reason = endings[job], endings[job].reason
    if state.state is State.PREEMPTED or state.is_handed_back:
        # Its own word stands, unless it went on in vain: then who took the job from it counts.
        if ending.state is not State.CANCELLED:
            return state
        reason = f"{reason}; {_without_denial(state.reason or str(state.state))}"
    elif state.is_unbegun and state.attempts:
        reason = f"{state.reason}: {reason}"
    node = ending.node if state.is_unbegun else state.node or ending.node
    return replace(state, state=ending.state, reason=reason, job=job, node=node)
