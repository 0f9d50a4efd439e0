"""Who works on a run, and whether it still lives.

A process is named by host, boot, pid and start time, so that a reused pid or a reboot never looks
like the old process. On another host its SLURM job is asked for instead.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Owner:
    """A process that holds a claim."""

    host: str
    boot: str
    pid: int
    started: int
    """Start time of the process in clock ticks since boot, from /proc."""
    job: str | None = None
    """SLURM job or array element, e.g. ``1234_5``."""
    submission: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for a JSON record."""
        return asdict(self)

    def is_alive(self, live_jobs: Collection[str] | None) -> bool:
        """Say whether the process still lives; when that can't be known, say that it does.

        Args:
            live_jobs: the jobs in squeue, None when there is no scheduler to ask.
        """
        if self.host == os.uname().nodename:
            return self.boot == boot_id() and start_time(self.pid) == self.started
        if self.job is not None and live_jobs is not None:
            return self.job in live_jobs
        return True


def myself(job: str | None = None, submission: str | None = None) -> Owner:
    """Return this process as an owner."""
    return named(os.getpid(), job=job, submission=submission)


def named(pid: int, job: str | None = None, submission: str | None = None) -> Owner:
    """Return a live process of this host as an owner."""
    return Owner(os.uname().nodename, boot_id(), pid, start_time(pid) or 0, job, submission)


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return the kernel's random id of this boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start_time(pid: int) -> int | None:
    """Return a process's start time in clock ticks; None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])
