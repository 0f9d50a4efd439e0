"""A task above 0 of an element of several tasks: joins the runs that task 0 takes."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import FrameType
from typing import Any

from rundir import Status, read_json
from sweeps.planning.plan import Plan
from sweeps.records.ledger import Submission
from sweeps.workers import process, signals, warmup
from sweeps.workers.leader import POLL_S
from sweeps.workers.ranks import Line, Place, Task
from sweeps.workers.slots import Slots

PATIENCE_S = 600.0
"""Seconds to wait for the leader's address. It is written before any run: a leader that takes so
long is gone."""

LOOK_S = (0.1, 1.0)
"""Seconds between two looks for the leader's address: the first ones, and later."""


class Follower:
    """Forks a process for each run that the leader announces, and says how it ended."""

    def __init__(self, plan: Plan, submission: Submission, task: Task, leader: Path) -> None:
        """Follow the leader whose address is, or will be, in the file ``leader``."""
        self.plan = plan
        self.submission = submission
        self.task = task
        self._leader = leader
        self._slots = Slots(1, None)
        self._ends_at: float | None = None
        self._killed = False
        self._is_stopped = False

    def work(self) -> int:
        """Work until the leader has no more runs; return 1 if it went without a word.

        One that had ended before this task was there says by its own exit code how it went.
        """
        signals.listen(self._on_signal)
        try:
            line = self._connected()
            if line is None:
                return 0
            self._line = line
            warmup.warm_up(self.plan, self.submission.share)
            self._line.send(ready=True)
            while "leave" not in (order := self._line.receive() or {}):
                if "run" in order:
                    self._join(order)
        except EOFError:
            return 1
        return 0

    def _connected(self) -> Line | None:
        """Return the line to the leader; None if it has ended already, or this task is stopped.

        Raises:
            EOFError: it can't be found or reached.
        """
        found = _address_in(self._leader, lambda: self._is_stopped)
        if found is None:
            return None
        try:
            line = Line(socket.create_connection((found["address"], found["port"]), timeout=60))
        except ConnectionRefusedError:
            return None
        except OSError as error:
            raise EOFError from error
        line.socket.settimeout(None)
        line.send(secret=found["secret"], rank=self.task.rank, node=self.task.node)
        return line

    def _join(self, order: dict[str, Any]) -> None:
        """Carry out this rank's part of a run."""
        self._ends_at, self._killed = None, False
        place = Place(
            self.task.rank, order["size"], self.task.local_rank, order["address"], order["port"]
        )
        be = partial(
            process.be_the_run, self.plan, self.submission, place=place, report=self._report
        )
        with signals.blocked():
            self._slots.start(self.plan.runs[order["run"]], order["attempt"], be)
        _, wait_status = self._slots.wait(self._watch)
        self._line.send(ended=None if self._killed else wait_status)

    def _report(self, status: Status) -> None:
        """In the forked process: tell the leader how it ends."""
        self._line.send(**asdict(status))

    def _watch(self) -> None:
        """Listen for a moment; kill the process when its time is over, or the leader gone."""
        try:
            order = self._line.receive(POLL_S) or {}
        except EOFError:
            self._kill()
            raise
        if "finish" in order:
            self._ends_at = time.monotonic() + order["finish"]
        if self._ends_at is not None and time.monotonic() > self._ends_at:
            self._kill()

    def _kill(self) -> None:
        self._killed = True
        self._slots.tell(signal.SIGKILL)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Pass it on; between two runs the leader, which has it too, decides what comes of it."""
        self._is_stopped = True
        self._slots.tell(number)


def _address_in(path: Path, is_stopped: Callable[[], bool]) -> dict[str, Any] | None:
    """Return the leader's address once it is written; None if told to stop meanwhile.

    Raises:
        EOFError: it was not there in time.
    """
    pause, longest = LOOK_S
    end = time.monotonic() + PATIENCE_S
    while not is_stopped():
        found = read_json(path)
        if found is not None:
            return found
        if time.monotonic() > end:
            raise EOFError
        time.sleep(pause)
        pause = min(longest, 1.5 * pause)
        # An NFS client remembers for up to a minute that a file was absent. A change of its own
        # makes it look at the folder again.
        with suppress(OSError), NamedTemporaryFile(dir=path.parent, prefix=".look."):
            pass
    return None
