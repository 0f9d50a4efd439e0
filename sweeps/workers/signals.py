"""The signals that ask a worker and its runs to stop, and when they wait. Standard library only."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask a run to checkpoint at its next step boundary and end as ``preempted``."""


def block() -> None:
    """Have stop signals wait from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def unblock() -> None:
    """Take in those that came meanwhile, and from now on each when it comes."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def blocked() -> Iterator[None]:
    """Have stop signals wait: from a claim to the fork, so that there is a run to tell."""
    block()
    try:
        yield
    finally:
        unblock()


def pending() -> bool:
    """Say whether one waits."""
    return bool(signal.sigpending() & set(STOP_SIGNALS))


def listen(on_signal: Callable[[int, FrameType | None], None]) -> None:
    """Have stop signals handled, also those that wait."""
    for number in STOP_SIGNALS:
        signal.signal(number, on_signal)
    unblock()
