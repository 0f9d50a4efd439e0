"""Independent pieces of work on a CPU, a thread for each, instead of all threads for every one.

Where an operator takes less than a millisecond, its threads wait for each other as long as they
work: 256 x 682 products scale badly over two threads, and when another process wants a core each
costs a time slice. Pieces meet once.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

Piece = Callable[[], None]

_LEAST_BUSY = 0.8
"""Share of all threads' time that pieces must fill, or they are done one after another, with all
threads on each."""

_LEAST_US = 2000.0
"""Below it handing pieces over costs what it saves: two threads, polar factors of 20 matrices of
64 x 170 or so: 3.5 ms one after another, 3.9 shared; of 20 of 128 x 341: 12.2 and 12.5 on idle
cores; of 10 of 256 x 682: 42 and 34."""


def run_pieces(pieces: Sequence[Piece], costs: Sequence[float]) -> None:
    """Do all, in whatever order.

    They run without gradients. On other threads than the caller's, whose dispatch modes and
    profilers do not see them.

    Args:
        pieces: none may depend on another.
        costs: of each, about, in microseconds of one thread.

    Raises:
        Exception: what a piece raised first; others may not have been done then.
    """
    before = torch.get_num_threads()
    if before == 1 or sum(costs) < _LEAST_US or not fills_threads(costs, before):
        for piece in pieces:
            piece()
        return
    # The longest first, so that the last ones to end are short.
    order = sorted(range(len(pieces)), key=lambda i: -costs[i])
    waiting = iter([pieces[i] for i in order])
    others = [_pool(os.getpid(), before).submit(_work, waiting) for _ in range(before - 1)]
    torch.set_num_threads(1)
    try:
        _work(waiting)
    finally:
        torch.set_num_threads(before)
        # Not before all have ended may their memory be used again.
        errors = [other.exception() for other in others]
    for error in errors:
        if error is not None:
            raise error


def fills_threads(costs: Sequence[float], threads: int) -> bool:
    """Whether so many threads, each with its own pieces, would be busy for most of the time."""
    ends = [0.0] * threads
    for cost in sorted(costs, reverse=True):
        heapq.heapreplace(ends, ends[0] + cost)
    return sum(costs) >= _LEAST_BUSY * threads * max(ends)


@torch.no_grad()
def _work(waiting: Iterator[Piece]) -> None:
    for piece in waiting:  # a list's iterator gives each piece to one thread
        piece()


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a fork has no threads
    """Return all threads but the caller's, each of which has told torch that it is alone."""
    pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="optsweep-pieces")
    barrier = threading.Barrier(threads - 1)

    def alone() -> None:
        torch.set_num_threads(1)
        barrier.wait()

    for begun in [pool.submit(alone) for _ in range(threads - 1)]:
        begun.result()
    # What threads that torch has not seen yet begin with is what was set last.
    torch.set_num_threads(threads)
    return pool
