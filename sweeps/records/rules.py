"""What is done without a human when a run ends badly or its job is taken away: plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rundir import State, UserError, require, unknown
from rundir.wording import count_of

RETRIABLE = (
    State.PREEMPTED,
    State.TIMEOUT,
    State.NODE_FAIL,
    State.FAILED,
    State.OUT_OF_MEMORY,
    State.LOST,
)
"""Ends after which a run may be begun again; the others are final or the user's own wish."""

BY_DEFAULT = (State.PREEMPTED, State.TIMEOUT, State.NODE_FAIL)
"""Ends that are no fault of the run."""

NOT_REQUEUED = "; not requeued"
"""Begins what a worker adds to the reason of a run that does not go on by itself."""


@dataclass(frozen=True)
class Rules:
    """When a run is begun again by itself, and when a launch begins no more runs."""

    max_requeues: int = 3
    """Times that one run is begun again within its submission."""
    requeue_on: tuple[State, ...] = BY_DEFAULT
    """Ends after which it is."""
    max_failures: int | None = None
    """Failed runs of a launch after which its workers begin no more; None: no limit."""

    @classmethod
    def of(
        cls,
        max_requeues: int,
        requeue_on: Iterable[str],
        max_failures: int | None,
        *,
        fail_fast: bool,
    ) -> Rules:
        """Build the rules from the ``cluster`` node.

        Raises:
            UserError: a number that can't work, or a word that is no such end.
        """
        require(max_requeues >= 0, "cluster.max_requeues", max_requeues, "at least 0")
        words = [str(word) for word in requeue_on]
        for word in words:
            if word not in RETRIABLE:
                raise unknown("end of a run", word, RETRIABLE, "cluster.requeue_on")
        valid = max_failures is None or max_failures >= 1
        require(valid, "cluster.max_failures", max_failures, "null or at least 1")
        if fail_fast and max_failures not in {None, 1}:
            raise UserError(
                "cluster.fail_fast = true; means cluster.max_failures = 1, which is given as "
                f"{max_failures}"
            )
        states = tuple(State(word) for word in words)
        return cls(max_requeues, states, 1 if fail_fast else max_failures)

    @classmethod
    def from_record(cls, record: dict[str, object]) -> Rules:
        """Return the rules that a submission recorded."""
        states = tuple(State(word) for word in record["requeue_on"])  # type: ignore[attr-defined]
        return cls(**{**record, "requeue_on": states})  # type: ignore[arg-type]

    @property
    def requeues(self) -> bool:
        """Say whether an element may ever go back into the queue."""
        return self.max_requeues > 0 and bool(self.requeue_on)

    def covers(self, end: State) -> bool:
        """Say whether runs that ended so are begun again.

        A worker that is gone without a word may have lost its node; where nobody knows, it counts
        as that.
        """
        return end in self.requeue_on or (end is State.LOST and State.NODE_FAIL in self.requeue_on)

    def refusal(self, end: State, made: int) -> str | None:
        """Return why a run that ended so is not begun again; None if it is.

        Args:
            end: its end, one of the bad ones.
            made: times it was begun again already in this submission.
        """
        if not self.covers(end):
            return f"{end} is not in cluster.requeue_on"
        if made >= self.max_requeues:
            times = count_of(made, "time")
            return f"begun again {times} (cluster.max_requeues = {self.max_requeues})"
        return None
