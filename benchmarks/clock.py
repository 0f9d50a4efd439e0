"""How long a call takes on a device: CUDA events or the processor's clock, two sides in turn."""

from __future__ import annotations

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

Call = Callable[[], object]

AGAIN = 5.0
"""Seconds from one alarm to the next, should the first be lost where nothing can be raised."""


class OutOfTime(BaseException):
    """A measurement takes longer than it may; no Exception, such that torch catches none."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in what runs within, after so long; main thread only."""
    outer, _ = signal.setitimer(signal.ITIMER_REAL, 0.0)
    seconds = max(min(seconds, outer or seconds), 1e-3)
    began = time.perf_counter()

    def end(*_: object) -> None:
        raise OutOfTime(f"takes longer than the {seconds:.3g} s that there are for it")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        if outer:
            rest = max(outer - (time.perf_counter() - began), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, rest, AGAIN)


@dataclass(frozen=True)
class Side:
    """What is timed, and what has to happen before each time, off the clock."""

    call: Call
    before: Call | None = None


@dataclass(frozen=True)
class Timing:
    """Seconds of one side, and of the other in the same turns."""

    ours: list[float]
    theirs: list[float]
    """Empty where nothing stands beside ours."""

    @property
    def seconds(self) -> float:
        """Median of ours."""
        return median(self.ours)

    @property
    def ratios(self) -> list[float]:
        """How much longer the other side took, turn by turn, ascending."""
        return sorted(b / a for a, b in zip(self.ours, self.theirs, strict=False))


class Clock(ABC):
    """Times calls on one device."""

    least_pairs: int
    """Turns, however long a call takes."""
    most_pairs: int
    """Turns that are enough, if the calls are quick."""

    @abstractmethod
    def seconds(self, side: Side) -> float:
        """Return what one call takes, with all the work that it leaves on the device."""

    def in_turns(
        self, ours: Side, theirs: Side | None, limit: float, least: int | None = None
    ) -> Timing:
        """Time the sides A B A B … for about ``limit`` seconds, after a turn that is not kept.

        Args:
            ours: goes first in each turn.
            theirs: None times ours alone.
            limit: once it has passed, there are no more than ``least`` turns.
            least: by default :attr:`least_pairs`.
        """
        least = self.least_pairs if least is None else least
        sides = [side for side in (ours, theirs) if side is not None]
        for side in sides:
            self.seconds(side)
        taken: list[list[float]] = [[] for _ in sides]
        began = time.perf_counter()
        while len(taken[0]) < self.most_pairs:
            if len(taken[0]) >= least and time.perf_counter() - began > limit:
                break
            for side, times in zip(sides, taken, strict=True):
                times.append(self.seconds(side))
        return Timing(taken[0], taken[1] if theirs is not None else [])


class ProcessorClock(Clock):
    """For calls that are done when they return; each finds the caches full of other things."""

    least_pairs, most_pairs = 5, 15

    def __init__(self, filler: int = 2**26) -> None:
        """Take so many numbers; by default 256 MiB, about the largest last-level cache."""
        self._filler = torch.empty(filler)

    def seconds(self, side: Side) -> float:
        """Wall time."""
        if side.before is not None:
            side.before()
        self._filler.zero_()
        began = time.perf_counter()
        side.call()
        return time.perf_counter() - began


class CudaClock(Clock):
    """Device time between two events, as in the middle of training.

    Before each call the device gets some milliseconds of work that also empties its cache: the
    optimizer's step follows the backward pass, which the host has left behind and which has touched
    other memory. A step that keeps the host busy for longer than that shows it.
    """

    least_pairs, most_pairs = 20, 25
    BUSY_PASSES = 16

    def __init__(self, device: torch.device) -> None:
        """Take 1 GiB of the device, 20 times the cache of the largest."""
        self._filler = torch.empty(2**28, device=device)

    def seconds(self, side: Side) -> float:
        """Time between two events on the current stream."""
        if side.before is not None:
            side.before()
        event: Callable[..., Any] = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        torch.cuda.synchronize()
        for _ in range(self.BUSY_PASSES):
            self._filler.zero_()
        start.record()
        side.call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def clock_of(device: torch.device, *, quick: bool = False) -> Clock:
    """Return the clock of a device; the quick one of a processor empties 64 MiB of cache."""
    if device.type == "cuda":
        return CudaClock(device)
    return ProcessorClock(2**24) if quick else ProcessorClock()


def host_seconds(side: Side, device: torch.device) -> float:
    """Return how long the host is busy with a call: what it costs to launch, median of 5."""
    times = []
    for _ in range(5):
        if side.before is not None:
            side.before()
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        side.call()
        times.append(time.perf_counter() - began)
    return median(times)


def copy_rate(clock: Clock, device: torch.device) -> float:
    """Return bytes per second, read and written, of a copy within the device; best of 8."""
    count = 2**28 if device.type == "cuda" else 2**26
    source, target = (torch.ones(count, device=device) for _ in range(2))
    side = Side(lambda: target.copy_(source))
    clock.seconds(side)
    return 8.0 * count / min(clock.seconds(side) for _ in range(8))


def product_rate(clock: Clock, device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return FLOPs per second of a square matrix product; best of 5."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    side = Side(lambda: torch.mm(left, right, out=out))
    clock.seconds(side)
    return 2.0 * size**3 / min(clock.seconds(side) for _ in range(5))
