"""The places of a worker: so many processes side by side, one run in each."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from sweeps.planning.plan import PlannedRun


@dataclass(frozen=True, eq=False)
class Attempt:
    """A run at work in a slot."""

    run: PlannedRun
    number: int
    """The attempt, counted from 1."""
    slot: int


class Slots:
    """Forks a process for each run; see the module's text."""

    def __init__(self, count: int, per_gpu: int | None) -> None:
        """Offer ``count`` slots, ``per_gpu`` of them on each visible GPU; None: GPUs are shared."""
        self._gpus = _visible() if per_gpu else []
        self._per_gpu = per_gpu or 1
        self._free = list(range(count))
        self._at_work: dict[int, Attempt] = {}

    @property
    def is_full(self) -> bool:
        """Say whether every slot has a run."""
        return not self._free

    @property
    def is_empty(self) -> bool:
        """Say whether no slot has a run."""
        return not self._at_work

    def start(self, run: PlannedRun, number: int, be: Callable[[Attempt], NoReturn]) -> None:
        """Fork a process that becomes the run. The caller blocks signals meanwhile.

        Raises:
            OSError: the kernel has no process to spare; the slot is still free.
        """
        attempt = Attempt(run, number, self._free[0])
        worker = os.getpid()
        child = os.fork()
        if child == 0:
            _die_with(worker)
            if self._gpus:
                place = attempt.slot // self._per_gpu % len(self._gpus)
                os.environ["CUDA_VISIBLE_DEVICES"] = self._gpus[place]
            be(attempt)
        self._at_work[child] = attempt
        self._free.remove(attempt.slot)

    def wait(self, watch: Callable[[], None] | None = None) -> tuple[Attempt, int]:
        """Wait until a run's process ends; return the run and the status from ``os.waitpid``.

        Args:
            watch: called again and again meanwhile; it takes its time.
        """
        while True:
            child, wait_status = os.waitpid(-1, os.WNOHANG if watch else 0)
            if watch and not child:
                watch()
            if child in self._at_work:  # a task's module may have left processes of its own
                attempt = self._at_work.pop(child)
                self._free = sorted([*self._free, attempt.slot])
                return attempt, wait_status

    def tell(self, number: int) -> None:
        """Send a signal to every run."""
        for child in list(self._at_work):
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(child, number)


def _visible() -> Sequence[str]:
    """Return the GPUs that the scheduler, or the local worker's token, gave to this worker."""
    return [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]


def _die_with(worker: int) -> None:
    """Have the kernel kill this process when its worker dies.

    The worker holds the claim: a run that outlived it would be taken for lost and run twice.
    """
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != worker:  # it died before the call above
        os._exit(1)
