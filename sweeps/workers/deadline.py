"""The time limit of a worker: what may still be begun before it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from rundir.files import METRICS_FILE, Status, iter_metrics
from rundir.wording import duration
from sweeps.planning.plan import Plan, PlannedRun
from sweeps.records.ledger import Share

SLACK_S = 30.0
"""Seconds around the warning of the time limit in which a signal is taken for it: SLURM checks
limits twice a minute."""


@dataclass
class Deadline:
    """When this worker's runs are told to stop, and how long a run needs to be worth beginning."""

    stops_at: float | None
    """Unix seconds at which SLURM sends the warning signal; None without a limit."""
    needed_s: float = 0.0
    """Longest time that a run of this worker took so far to the first step that it recorded. Once
    that is done, a stop signal makes a checkpoint."""

    @classmethod
    def of(cls, share: Share) -> Deadline:
        """Return this worker's deadline: SLURM's word, or else the limit counted from here."""
        told = os.environ.get("SLURM_JOB_END_TIME")  # SLURM 23.02 and later
        if told and told.isdecimal():
            return cls(float(told) - share.signal_delay_s)
        if not share.timeout_min:
            return cls(None)
        return cls(time.time() + share.timeout_min * 60 - share.signal_delay_s)

    @property
    def left_s(self) -> float:
        """Seconds until the warning signal."""
        return float("inf") if self.stops_at is None else self.stops_at - time.time()

    @property
    def is_here(self) -> bool:
        """Say whether a signal that comes at this moment is the warning of the time limit."""
        return self.left_s < SLACK_S

    def learn(self, plan: Plan, run: PlannedRun, status: Status) -> None:
        """Note how long an ended run took to its first recorded step, at most to its end."""
        if self.stops_at is None or status.started_at is None:
            return
        records = iter_metrics(plan.directory(run) / METRICS_FILE)
        first = next((r["t"] for r in records if r.get("attempt") == status.attempt), None)
        reached = first or status.ended_at or time.time()
        self.needed_s = max(self.needed_s, reached - status.started_at)

    def refusal(self) -> str | None:
        """Return why no run is begun any more; None while one may be."""
        if self.left_s > self.needed_s:
            return None
        left, needed = duration(max(0.0, self.left_s)), duration(self.needed_s)
        return f"{left} were left before the time limit, a run takes {needed} to its first step"
