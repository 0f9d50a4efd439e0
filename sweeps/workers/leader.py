"""Task 0 of an element of several tasks: tells the others what to join, and hears how they fare."""

from __future__ import annotations

import secrets
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from rundir import DONE, RanksLost, State, Status, Superseded
from sweeps.workers.execution import end_of_killed
from sweeps.workers.ranks import Line, Place, Task, free_port, write_address

POLL_S = 0.1
"""Seconds between two looks at the run's own process."""

GRACE_S = 5.0
"""Seconds that a run's other processes have to end by themselves once one of them has failed."""

PARTING_S = 20.0
"""Seconds that they have once rank 0 has ended well."""


@dataclass
class _Fellow:
    """A follower and what is known of its part in the current run."""

    line: Line
    rank: int
    node: str
    is_ready: bool = False
    is_gone: bool = False
    is_at_work: bool = False
    said: Status | None = None
    """How its process says that it ended."""
    fault: Status | None = None
    """How it failed, if that was nobody else's doing."""

    def describe(self) -> str:
        """Return its failure in words."""
        reason = self.fault.reason if self.fault else None
        return f"rank {self.rank} on {self.node}: {reason}"


@dataclass
class Leader:
    """Leads the followers of one element."""

    task: Task
    path: Path
    """Where its address is written. It stays: that nobody answers there tells a late follower that
    the element has ended."""
    _fellows: list[_Fellow] = field(default_factory=list)
    _attempt: int = 0
    _ends_at: float | None = None
    _killed: bool = False

    def __post_init__(self) -> None:
        """Listen, and say where."""
        self._secret = secrets.token_hex(16)
        here = self.task.address
        bound = here if self.task.nodes == 1 else ""
        self._server = socket.create_server((bound, 0), backlog=self.task.size)
        port = self._server.getsockname()[1]
        write_address(self.path, {"address": here, "port": port, "secret": self._secret})

    @property
    def is_alone(self) -> bool:
        """Say whether a follower is gone, so that no further run can begin."""
        return any(fellow.is_gone for fellow in self._fellows)

    def gather(self, is_stopped: Callable[[], bool]) -> None:
        """Wait until every follower is ready to work, or this worker is told to stop."""
        while not is_stopped() and not self.is_alone:
            if sum(fellow.is_ready for fellow in self._fellows) == self.task.size - 1:
                return
            self._hear(POLL_S)

    def announce(self, index: int, attempt: int) -> Place:
        """Have the followers join an attempt at a run; return rank 0's place in it."""
        self._attempt, self._ends_at, self._killed = attempt, None, False
        place = Place(0, self.task.size, self.task.local_rank, self.task.address, free_port())
        for fellow in self._fellows:
            fellow.is_at_work, fellow.said, fellow.fault = True, None, None
            fellow.line.send(
                run=index, attempt=attempt, address=place.address, port=place.port, size=place.size
            )
        return place

    def watch(self, kill: Callable[[], None]) -> None:
        """Hear the followers for a moment; when one has failed, soon kill rank 0's process."""
        self._hear(POLL_S)
        if self._ends_at is None and any(fellow.fault for fellow in self._fellows):
            self._ends_at = time.monotonic() + GRACE_S
        if self._ends_at is not None and time.monotonic() > self._ends_at:
            self._killed = True
            kill()

    def verdict(self, status: Status) -> Status:
        """Wait for the followers to end too; return how the run ended, given how rank 0 did."""
        within = PARTING_S if status.state in {*DONE, State.PREEMPTED} else GRACE_S
        for fellow in self._fellows:
            fellow.line.send(finish=within)
        patience = time.monotonic() + within + GRACE_S
        while any(f.is_at_work for f in self._fellows) and time.monotonic() < patience:
            self._hear(POLL_S)
        failed = [fellow for fellow in self._fellows if fellow.fault]
        if not failed or status.state in {*DONE, State.PREEMPTED}:
            return status
        words = [fellow.describe() for fellow in failed]
        if not self._killed:
            if all(fellow.fault and fellow.fault.reason == status.reason for fellow in failed):
                return status
            words.append(f"rank 0: {status.reason}")
        worst = failed[0].fault
        state = worst.state if worst else status.state
        return replace(status, state=state, reason="; ".join(words))

    def dismiss(self) -> None:
        """Let the followers go, and wait a moment until they have."""
        for fellow in self._fellows:
            fellow.line.send(leave=True)
        patience = time.monotonic() + GRACE_S
        while not all(f.is_gone for f in self._fellows) and time.monotonic() < patience:
            self._hear(POLL_S)
        self._server.close()
        for fellow in self._fellows:
            fellow.line.socket.close()

    def _hear(self, seconds: float) -> None:
        """Take in what followers say within ``seconds``, and followers that report for work."""
        lines = {f.line.socket: f for f in self._fellows if not f.is_gone}
        for source in select.select([self._server, *lines], [], [], seconds)[0]:
            if source is self._server:
                self._admit(Line(self._server.accept()[0]))
            else:
                self._listen_to(lines[source])

    def _admit(self, line: Line) -> None:
        try:
            hello = line.receive(GRACE_S) or {}
        except EOFError:
            hello = {}
        said = str(hello.get("secret")).encode(errors="replace")
        if secrets.compare_digest(said, self._secret.encode()):
            fellow = _Fellow(line, hello["rank"], hello["node"])
            self._fellows.append(fellow)
            self._fellows.sort(key=lambda fellow: fellow.rank)
            self._listen_to(fellow)  # select does not see what came along with the greeting
        else:
            line.socket.close()

    def _listen_to(self, fellow: _Fellow) -> None:
        try:
            while True:
                message = fellow.line.receive(0)
                if message is None:
                    return
                fellow.is_ready |= "ready" in message
                if "state" in message:
                    fellow.said = Status(**{**message, "state": State(message["state"])})
                if "ended" in message:
                    self._end(fellow, message["ended"])
        except EOFError:
            fellow.is_gone = True
            if fellow.is_at_work:
                fellow.is_at_work = False
                fellow.fault = Status(State.FAILED, reason="its worker is gone")

    def _end(self, fellow: _Fellow, wait_status: int | None) -> None:
        """Note the end of a follower's process.

        Args:
            fellow: the follower.
            wait_status: from ``os.waitpid``; None if its worker killed it because of others.
        """
        fellow.is_at_work = False
        if wait_status is None:
            return
        end = fellow.said or end_of_killed(None, self._attempt, wait_status)
        harmless = {*DONE, State.PREEMPTED}
        # Rank 0 ends for the same later attempt, and may be the one that has still to see it.
        elsewhere = {RanksLost.exit_code, Superseded.exit_code}
        if end.state not in harmless and end.exit_code not in elsewhere:
            fellow.fault = end
