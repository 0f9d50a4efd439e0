"""Where one run of a sweep stands: what every command shows, and every launch decides by."""

from __future__ import annotations

from dataclasses import dataclass

from rundir import DONE, ENDED, State, Status
from sweeps.planning.plan import PlannedRun


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
