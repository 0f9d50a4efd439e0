from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from trainer.kernels import threads as threads_module
from trainer.kernels.threads import fills_threads, run_pieces

LONG = 1e5


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_each_piece_is_done_once_by_a_thread_of_its_own_that_computes_alone() -> None:
    done: list[int] = []
    seen: set[tuple[str, int, bool]] = set()

    def piece(number: int) -> None:
        done.append(number)
        thread = threading.current_thread().name
        seen.add((thread, torch.get_num_threads(), torch.is_grad_enabled()))
        time.sleep(0.01)

    run_pieces([lambda n=n: piece(n) for n in range(20)], [LONG] * 20)  # type: ignore[misc]
    assert sorted(done) == list(range(20))
    assert len(seen) == 2
    assert {(count, grad) for _, count, grad in seen} == {(1, False)}
    assert torch.get_num_threads() == 2


def test_what_is_short_or_leaves_a_thread_idle_stays_with_the_caller() -> None:
    seen: set[tuple[int, int]] = set()

    def piece() -> None:
        seen.add((threading.get_ident(), torch.get_num_threads()))
        time.sleep(0.001)

    for costs in ([1.0] * 4, [LONG, 1.0], [LONG]):
        run_pieces([piece] * len(costs), costs)
    assert seen == {(threading.get_ident(), 2)}


def test_an_error_of_any_thread_arrives_and_the_threads_are_given_back() -> None:
    def fail() -> None:
        time.sleep(0.01)
        raise ValueError(threading.current_thread().name)

    for _ in range(2):
        with pytest.raises(ValueError, match=r"MainThread|optsweep-pieces"):
            run_pieces([fail] * 4, [LONG] * 4)
        assert torch.get_num_threads() == 2
    other = [lambda: None if threading.current_thread() is threading.main_thread() else fail()]
    with pytest.raises(ValueError, match="optsweep-pieces"):
        run_pieces([lambda: time.sleep(0.05), *other * 4], [2 * LONG, *[LONG] * 4])


def test_a_new_thread_begins_with_all_threads() -> None:
    """torch gives a thread that it sees for the first time what was set last, by whomever."""
    threads_module._pool.cache_clear()
    run_pieces([lambda: None] * 4, [LONG] * 4)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [2]


@pytest.mark.parametrize(
    ("costs", "threads", "wanted"),
    [
        ([1.0] * 4, 2, True),
        ([1.0] * 5, 4, False),
        ([4.0, 1.0, 1.0], 2, False),
        ([3.0, 1.0, 2.0], 2, True),
        ([1.0], 1, True),
    ],
)
def test_threads_are_filled_where_they_end_together(costs, threads, wanted) -> None:  # type: ignore[no-untyped-def]
    assert fills_threads(costs, threads) is wanted
