"""Looking at a sweep again and again: one question to the scheduler a look, and honest notes."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rundir import ClusterError, State
from rundir.wording import count_of
from sweeps.cluster import scheduler
from sweeps.cluster.scheduler import Ending, UnknownQueue
from sweeps.follow import states
from sweeps.follow.runrecords import Records
from sweeps.follow.runstate import RunState
from sweeps.planning.plan import Plan
from sweeps.records import ledger


@dataclass(frozen=True)
class Patience:
    """How long sacct is asked about a job that it does not know."""

    lag_s: float = 15.0
    """Seconds after which a job is not asked for again; slurmdbd is up to 5 s behind."""
    silence_s: float = 60.0
    """Seconds for which nothing is asked after a failed or unanswered question."""


class Lookout:
    """Tells where the runs of a sweep stand, at each look at the cost of what has changed."""

    def __init__(self, plan: Plan, patience: Patience | None = None) -> None:
        self.plan = plan
        self.notes: list[str] = []
        """What the latest look could not learn, and why."""
        self._patience = patience or Patience()
        self._records = Records(plan)
        self._endings: dict[str, Ending] = {}
        self._missed_at: dict[str, float] = {}
        self._silent_until = 0.0
        self._denial: str | None = None

    def look(self) -> list[RunState]:
        """Return the state of every run.

        Asks squeue once, and sacct at most once: about jobs that left the queue without an end
        record, and not again about those that it has explained. Where squeue does not answer, what
        may still be in the queue is taken to be there.
        """
        entries = ledger.entries(self.plan.home)
        self.notes = ledger.damage(self.plan.home, entries)
        try:
            queue = states.queue_of(self.plan, entries)
        except ClusterError as error:
            queue = UnknownQueue()
            self.notes.append(f"{error}; the states are from the runs' own records")
        if queue is not None:
            self._endings.update(queue.endings)
        found = states.survey(
            self.plan,
            queue,
            entries=entries,
            records=self._records,
            accounting=self._accounting,
        )
        untold = [s for s in found if s.state is State.LOST and s.job in self._missed_at]
        if untold and self._denial:
            what = f"how {count_of(len(untold), 'run')} ended is known only as far as shown"
            self.notes.append(f"{self._denial}; {what}")
        return found

    def _accounting(self, jobs: Collection[str]) -> Mapping[str, Ending]:
        now = time.monotonic()
        unknown = {job for job in jobs if job not in self._endings}
        for job in unknown:
            self._missed_at.setdefault(job, now)
        due = {job for job in unknown if now - self._missed_at[job] <= self._patience.lag_s}
        if due and now >= self._silent_until:
            try:
                self._endings.update(scheduler.endings(due))
                self._denial = None
            except ClusterError as error:
                self._denial = str(error)
                self._silent_until = time.monotonic() + self._patience.silence_s
        return self._endings
