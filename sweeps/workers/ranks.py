"""The processes of one run: where each stands, and how their workers talk.

An array element of several tasks has a worker in each. Task 0 leads (:mod:`sweeps.workers.leader`):
it alone claims and records. The others follow (:mod:`sweeps.workers.follower`). They talk over TCP,
which is quicker than files on NFS, and which says at once when one of them is gone. Only the
leader's address is a file.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rundir.files import LOG_FILE
from sweeps.cluster import requeue
from sweeps.records.ledger import SLURM, Submission

LINE_BYTES = 1 << 20
"""Most that a message may be long; those of ours take less than a thousandth of it."""

RANKS_DIR = "ranks"
"""Folder of a submission in which the leaders' addresses lie."""


@dataclass(frozen=True)
class Place:
    """A process's place among those of its run, and where they meet."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes of its node; chooses its GPU."""
    address: str = ""
    port: int = 0

    @property
    def log_file(self) -> str:
        """Name, in the run directory, of what the process prints to."""
        return f"train.rank{self.rank}.log" if self.rank else LOG_FILE

    def environment(self) -> dict[str, str]:
        """Return the variables by which ``torch.distributed`` and others find each other."""
        if self.size == 1:
            return {}
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


ALONE = Place()
"""The place of a run's only process."""


@dataclass(frozen=True)
class Task:
    """This process among the tasks of its array element."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    nodes: int = 1
    node: str = ""

    @classmethod
    def here(cls, submission: Submission) -> Task:
        """Return what SLURM's variables say; a task alone where it is not SLURM's work."""
        if submission.share.backend != SLURM:
            return cls()

        def number(name: str, default: int) -> int:
            return int(os.environ.get(name) or default)

        return cls(
            number("SLURM_PROCID", 0),
            number("SLURM_STEP_NUM_TASKS", number("SLURM_NTASKS", 1)),
            number("SLURM_LOCALID", 0),
            number("SLURM_STEP_NUM_NODES", number("SLURM_NNODES", 1)),
            os.environ.get("SLURMD_NODENAME") or os.uname().nodename,
        )

    @property
    def address(self) -> str:
        """Name under which the element's other tasks reach this one."""
        if self.nodes == 1:
            return "127.0.0.1"
        return next(filter(_resolves, (self.node, os.uname().nodename)), self.node)


class Line:
    """One end of a connection that carries JSON objects."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self._read = b""

    def send(self, **message: Any) -> None:
        """Send a message; a lost connection shows when reading."""
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        """Return the next message; None if there was none for so long.

        Raises:
            EOFError: the other end is gone, or speaks otherwise than ours.
        """
        end = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._read:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self.socket], [], [], left)[0]:
                return None
            try:
                more = self.socket.recv(1 << 16)
            except OSError:
                more = b""
            if not more or len(self._read) > LINE_BYTES:
                raise EOFError
            self._read += more
        text, _, self._read = self._read.partition(b"\n")
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EOFError from error
        if isinstance(message, dict):
            return message
        raise EOFError


def address_file(submission: Submission, home: Path, element: int) -> Path:
    """Return where the leader of an element, as often as SLURM has begun it, says where it is."""
    folder = submission.folder(home) / RANKS_DIR
    folder.mkdir(exist_ok=True)
    return folder / f"{element}.{requeue.restarts(submission.share)}.json"


def write_address(path: Path, record: Mapping[str, Any]) -> None:
    """Write the leader's address, which holds a secret, for this user alone."""
    sibling = path.with_suffix(".new")
    handle = os.open(sibling, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(sibling, path)


def free_port() -> int:
    """Return a TCP port that nothing listens on, chosen by the kernel."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True
