"""Batches come in order from a thread that is bounded and ends."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from trainer.data.batches import Batch
from trainer.data.prefetch import AHEAD, Prefetched

PARTS = 3


class Source:
    """Makes batches that name their step and number, and counts them."""

    def __init__(self, wrong_step: int = -1) -> None:
        self.made = 0
        self.wrong_step = wrong_step

    def __call__(self, step: int) -> Iterator[Batch]:
        for number in range(PARTS):
            if step == self.wrong_step:
                raise OSError("the disk is gone")
            self.made += 1
            yield torch.tensor([step]), torch.tensor([number])


def taken(batches: Iterator[Batch]) -> list[tuple[int, int]]:
    return [(int(step), int(number)) for step, number in batches]


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("not within 5 s")


def at_work() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    gc.collect()
    until(lambda: at_work() == 0)
    yield
    gc.collect()
    until(lambda: at_work() == 0)


def test_steps_come_in_order_and_the_thread_ends_with_the_last() -> None:
    prefetched = Prefetched(Source(), steps=5)
    for step in range(5):
        assert taken(prefetched.micro_batches(step)) == [(step, n) for n in range(PARTS)]
    until(lambda: at_work() == 0)


def test_no_more_than_a_few_are_made_ahead() -> None:
    source = Source()
    prefetched = Prefetched(source, steps=10**9)
    assert taken(prefetched.micro_batches(7)) == [(7, 0), (7, 1), (7, 2)]
    until(lambda: source.made == PARTS + AHEAD + 1)
    time.sleep(0.05)
    assert source.made == PARTS + AHEAD + 1
    prefetched.close()


def test_steps_out_of_turn_and_steps_left_in_the_middle_are_right() -> None:
    prefetched = Prefetched(Source(), steps=100)
    assert taken(prefetched.micro_batches(3))[0] == (3, 0)
    next(iter(prefetched.micro_batches(4)))
    assert taken(prefetched.micro_batches(4)) == [(4, 0), (4, 1), (4, 2)]
    assert taken(prefetched.micro_batches(99)) == [(99, 0), (99, 1), (99, 2)]
    assert taken(prefetched.micro_batches(0)) == [(0, 0), (0, 1), (0, 2)]
    del prefetched


def test_what_goes_wrong_in_the_thread_is_raised_where_the_batch_is_wanted() -> None:
    prefetched = Prefetched(Source(wrong_step=1), steps=3)
    assert len(taken(prefetched.micro_batches(0))) == PARTS
    with pytest.raises(OSError, match="the disk is gone"):
        taken(prefetched.micro_batches(1))


def test_the_thread_ends_with_its_reader() -> None:
    prefetched = Prefetched(Source(), steps=10**9)
    taken(prefetched.micro_batches(0))
    assert at_work() == 1
    del prefetched
    gc.collect()
    until(lambda: at_work() == 0)
