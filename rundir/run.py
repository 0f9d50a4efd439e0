"""The run as its task sees it: a directory, and four verbs to report with."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from rundir.errors import Diverged, OptsweepError, Preempted, Superseded
from rundir.files import (
    CHECKPOINT_DIR,
    METRICS_FILE,
    State,
    Status,
    has_begun,
    open_for_append,
    read_status,
    superseded,
    write_status,
)

STATUS_INTERVAL_S = 0.5
"""Least seconds between two progress writes of status.json."""

FENCE_INTERVAL_S = 2.0
"""Seconds between two looks whether a later attempt has begun, besides those at each write."""


class Run:
    """One attempt at one run, handed to the task.

    A task logs metrics with :meth:`log`, says how far it is with :meth:`progress`, looks at
    :attr:`stop_requested` at step boundaries, and keeps what it resumes from under
    :attr:`checkpoints`. It works the same in a sweep, alone and in a notebook::

        with Run("somewhere") as run:
            train(config, run)

    Once a later attempt at the run has begun, as this one was taken for gone, every verb raises
    :class:`Superseded` and nothing is written any more.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        attempt: int | None = None,
        threads: int | None = None,
        job: str | None = None,
        on_progress: Callable[[Status], None] | None = None,
        rank: int = 0,
        world_size: int = 1,
        successor: Path | None = None,
    ) -> None:
        """Open the directory for one attempt, creating it if needed.

        Args:
            path: the run directory.
            attempt: counted from 1; by default one more than the last recorded attempt.
            threads: CPU threads that the task may use; None lets it use every core it may run on.
            job: the scheduler's id of the job that works on this run.
            on_progress: called with every new status, e.g. to print a line.
            rank: which of the run's processes this is; those above 0 write nothing at all,
                but end for a later attempt as rank 0 does.
            world_size: how many processes the run has.
            successor: the file whose appearance means that the next attempt has begun.

        Raises:
            Superseded: a later attempt has begun.
        """
        self.path = Path(path)
        self.rank, self.world_size = rank, world_size
        if rank == 0:
            self.path.mkdir(parents=True, exist_ok=True)
        last = read_status(self.path)
        self.attempt = attempt if attempt is not None else (last.attempt + 1 if last else 1)
        self.threads = threads or len(os.sched_getaffinity(0))
        self.stop_requested: str | None = None
        """Name of the signal or limit that asks the task to checkpoint and stop, or None."""
        now = time.time()
        self.status = Status(
            State.RUNNING,
            attempt=self.attempt,
            host=os.uname().nodename,
            pid=os.getpid(),
            job=job,
            started_at=now,
            updated_at=now,
            earlier=(last.failures or None) if last else None,
        )
        self._on_progress = on_progress
        self._written_at = 0.0
        self._successor = successor
        self._looked_at = time.monotonic()
        self._superseded: Superseded | None = None
        self._first_progress: tuple[float, int] | None = None
        self._metrics = open_for_append(self.path / METRICS_FILE) if rank == 0 else None
        self._write(self.status)

    @property
    def checkpoints(self) -> Path:
        """Where to keep what the run resumes from; costs a stat.

        Raises:
            Superseded: a later attempt has begun, which alone may save there.
        """
        self._hold()
        return self.path / CHECKPOINT_DIR

    @property
    def is_superseded(self) -> bool:
        """Say whether a later attempt has begun; costs a stat."""
        self._looked_at = time.monotonic()
        if self._superseded is None and has_begun(self._successor):
            self._superseded = superseded(self.attempt, self.attempt + 1)
        return self._superseded is not None

    def _hold(self, at_most_every_s: float = 0.0) -> None:
        """Raise :class:`Superseded` if a later attempt has begun, as far as the last look tells."""
        if time.monotonic() - self._looked_at >= at_most_every_s:
            _ = self.is_superseded
        if self._superseded is not None:
            raise self._superseded

    def log(self, stream: str, step: int, **metrics: float) -> None:
        """Append one record to metrics.jsonl. NaN and the infinities survive.

        Args:
            stream: e.g. ``"train"`` or ``"val"``; each becomes a table of its own in the store.
            step: optimizer steps done when the metrics were measured.
            metrics: flat numbers; names may hold dots and slashes.

        Raises:
            Superseded: a later attempt has begun.
        """
        self._hold(FENCE_INTERVAL_S)
        if self._metrics is None:
            return
        record = {"stream": stream, "step": step, "t": time.time(), "attempt": self.attempt}
        line = json.dumps({**record, **{name: float(value) for name, value in metrics.items()}})
        os.write(self._metrics, line.encode() + b"\n")

    def progress(self, step: int, total_steps: int, **figures: float) -> None:
        """Say how far the run is; kept in status.json, at most every half second.

        Args:
            step: steps done so far.
            total_steps: steps of the whole run.
            figures: what ``status`` and ``watch`` show, e.g. ``loss``, ``tokens_per_second``.

        Raises:
            Superseded: a later attempt has begun.
        """
        self._hold(FENCE_INTERVAL_S)
        now = time.time()
        if self._first_progress is None:
            self._first_progress = (now, step)
        since, first = self._first_progress
        left = (now - since) / (step - first) * (total_steps - step) if step > first else None
        self.status = replace(
            self.status,
            step=step,
            total_steps=total_steps,
            figures=figures,
            seconds_left=left,
            updated_at=now,
        )
        if now - self._written_at >= STATUS_INTERVAL_S or step >= total_steps:
            self._write(self.status)

    def request_stop(self, reason: str) -> None:
        """Ask the task to checkpoint at its next step boundary; safe in a signal handler."""
        self.stop_requested = reason

    def end(self, state: State, reason: str | None = None, exit_code: int = 0) -> None:
        """Record how this attempt ended.

        Raises:
            Superseded: a later attempt has begun, whose record stays.
        """
        now = time.time()
        if self._metrics is not None:
            os.close(self._metrics)
            self._metrics = None
        self._write(
            replace(
                self.status,
                state=state,
                seconds_left=None,
                reason=reason,
                exit_code=exit_code,
                updated_at=now,
                ended_at=now,
            )
        )

    def _write(self, status: Status) -> None:
        if self._superseded is not None:
            raise self._superseded
        if self.rank == 0:
            try:
                write_status(self.path, status, self._successor)
            except Superseded as error:
                self._superseded = error
                raise
            self._looked_at = time.monotonic()
        self.status = status
        self._written_at = time.time()
        if self.rank == 0 and self._on_progress is not None:
            self._on_progress(status)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, Superseded):
            self.end(*ending(error))


def ending(error: BaseException | None) -> tuple[State, str | None, int]:
    """Return the state, reason and exit code of an attempt that ended with ``error``."""
    if error is None:
        return State.COMPLETED, None, 0
    reason = str(error) or type(error).__name__
    if isinstance(error, Diverged):
        return State.DIVERGED, reason, error.exit_code
    if isinstance(error, Preempted):
        return State.PREEMPTED, reason, error.exit_code
    if isinstance(error, OptsweepError):
        return State.FAILED, reason, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return State.CANCELLED, "interrupted from the keyboard", 130
    if isinstance(error, MemoryError):
        return State.OUT_OF_MEMORY, ": ".join(filter(None, ("MemoryError", str(error)))), 1
    name = type(error).__name__
    return State.FAILED, reason if reason == name else f"{name}: {reason}", 1
