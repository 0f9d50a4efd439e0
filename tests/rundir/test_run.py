import json
import math

import pytest

from rundir import ClusterError, Diverged, Preempted, Run, State, UserError, ending, read_status


def test_nan_and_infinity_survive_in_the_metrics(tmp_path):
    with Run(tmp_path) as run:
        run.log("train", 1, loss=math.nan, norm=math.inf)
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert math.isnan(record["loss"])
    assert record["norm"] == math.inf
    assert (record["stream"], record["step"], record["attempt"]) == ("train", 1, 1)


def test_a_run_opened_again_counts_its_attempts(tmp_path):
    for attempt in (1, 2, 3):
        with Run(tmp_path) as run:
            assert run.attempt == attempt


def test_progress_tells_the_time_left_until_the_run_ends(tmp_path):
    seen = []
    with Run(tmp_path, on_progress=seen.append) as run:
        run.progress(0, 10)
        run.progress(5, 10, loss=2.0)
        run.progress(10, 10, loss=1.0)
    assert seen[-2].seconds_left == 0
    last = read_status(tmp_path)
    assert (last.state, last.step, last.figures) == (State.COMPLETED, 10, {"loss": 1.0})
    assert last.seconds_left is None


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (None, State.COMPLETED, 0),
        (Diverged("nan"), State.DIVERGED, 1),
        (Preempted("SIGTERM"), State.PREEMPTED, 1),
        (UserError("lr"), State.FAILED, 2),
        (ClusterError("no"), State.FAILED, 3),
        (KeyboardInterrupt(), State.CANCELLED, 130),
        (MemoryError(), State.OUT_OF_MEMORY, 1),
        (ZeroDivisionError("0"), State.FAILED, 1),
    ],
)
def test_an_ending_has_a_state_and_an_exit_code(error, state, code):
    found, reason, exit_code = ending(error)
    assert (found, exit_code) == (state, code)
    assert (reason is None) == (error is None)


def test_an_error_without_words_is_named_once():
    assert ending(MemoryError())[1] == "MemoryError"
    assert ending(MemoryError("40 GB"))[1] == "MemoryError: 40 GB"
    assert ending(ZeroDivisionError())[1] == "ZeroDivisionError"


def test_promise_21_a_rank_above_0_writes_nothing(tmp_path):
    with Run(tmp_path / "run", attempt=1, rank=1, world_size=2) as run:
        run.log("train", 1, loss=1.0)
        run.progress(1, 1, loss=1.0)
    assert (run.rank, run.world_size, run.attempt) == (1, 2, 1)
    assert run.status.state is State.COMPLETED
    assert not run.path.exists()
