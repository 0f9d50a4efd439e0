"""Who works on a run, and whether it still lives.

A process is named by boot, pid and start time, so that a reused pid, a reboot or a new host name
never looks like another process. From another machine its SLURM job is asked for instead.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Owner:
    """A process that holds a claim."""

    host: str
    boot: str
    """Boot of the kernel and pid namespace: within one, a pid says which process is meant."""
    pid: int
    started: int
    """Start time of the process in clock ticks since boot, from /proc."""
    job: str | None = None
    """SLURM job or array element, e.g. ``1234_5``."""
    restarts: int = 0
    """Times that SLURM had begun the job again."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Owner:
        """Return the owner that a claim or the ledger recorded."""
        known = {field.name for field in fields(cls)} - {"restarts"}
        return cls(**{name: record[name] for name in known}, restarts=record.get("restarts", 0))

    def is_before(self, other: Owner) -> bool:
        """Say whether it worked in an earlier incarnation of the other's job, and so is gone."""
        is_same = self.job is not None and self.job == other.job
        return is_same and self.restarts < other.restarts and not self.is_alive_here()

    def is_alive_here(self) -> bool:
        """Say whether it is a live process of this machine."""
        return self.boot == _boot_id() and _start_time(self.pid) == self.started

    def is_alive(self, live_jobs: Collection[str] | None) -> bool:
        """Say whether the process still lives; when that can't be known, say that it does.

        Args:
            live_jobs: the jobs in squeue, None when there is no scheduler to ask.
        """
        if self.boot == _boot_id():
            return self.is_alive_here()
        if self.host == os.uname().nodename and self.job is None:
            # Of this boot, it is in another container with this host's name: not for us to see.
            return self.boot.split()[:1] == _boot_id().split()[:1]
        if self.job is not None and live_jobs is not None:
            return self.job in live_jobs
        return True


UNKNOWN = Owner(host="", boot="", pid=0, started=0)
"""Stands for whoever holds a claim that does not say so; nothing proves that it is gone."""


def myself(job: str | None = None, restarts: int = 0) -> Owner:
    """Return this process as an owner."""
    return named(os.getpid(), job, restarts)


def named(pid: int, job: str | None = None, restarts: int = 0) -> Owner:
    """Return a live process of this host as an owner."""
    return Owner(os.uname().nodename, _boot_id(), pid, _start_time(pid) or 0, job, restarts)


@lru_cache(maxsize=1)
def _boot_id() -> str:
    """Return what names this boot of this kernel, and the container whose pids it speaks of."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return os.uname().nodename


def _start_time(pid: int) -> int | None:
    """Return a process's start time in clock ticks; None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])
