import errno
import json
import math
import os
from pathlib import Path

import pytest

from rundir import (
    ClusterError,
    Diverged,
    Preempted,
    Run,
    State,
    Superseded,
    UserError,
    ending,
    read_status,
)


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


def test_a_rank_above_0_ends_for_a_later_attempt_too(tmp_path, monkeypatch):
    monkeypatch.setattr("rundir.run.FENCE_INTERVAL_S", 0)
    successor = tmp_path / "0.2"
    run = Run(tmp_path / "run", attempt=1, rank=1, world_size=2, successor=successor)
    run.log("train", 1, loss=1.0)
    successor.touch()
    with pytest.raises(Superseded):
        run.log("train", 2, loss=1.0)
    with pytest.raises(Superseded):
        run.end(State.COMPLETED)
    assert not run.path.exists()


def test_the_record_of_a_later_attempt_stays(tmp_path):
    late, next_one = Run(tmp_path, attempt=1), Run(tmp_path, attempt=2)
    with pytest.raises(Superseded, match="attempt 2 at this run has begun; attempt 1 ends"):
        late.progress(3, 3)
    next_one.end(State.COMPLETED)
    with pytest.raises(Superseded):
        late.end(State.FAILED, "late", 1)
    found = read_status(tmp_path)
    assert (found.state, found.attempt) == (State.COMPLETED, 2)
    with pytest.raises(Superseded):
        Run(tmp_path, attempt=1)


def test_an_attempt_that_a_claim_has_superseded_writes_nothing_more(tmp_path, monkeypatch):
    monkeypatch.setattr("rundir.run.FENCE_INTERVAL_S", 0)
    successor = tmp_path / "0.2"
    run = Run(tmp_path / "run", attempt=1, successor=successor)
    run.log("train", 1, loss=1.0)
    run.progress(1, 1)
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    successor.touch()
    for verb in (
        lambda: run.log("train", 2, loss=1.0),
        lambda: run.progress(2, 2),
        lambda: run.checkpoints,
        lambda: run.end(State.COMPLETED),
    ):
        with pytest.raises(Superseded):
            verb()
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before


@pytest.fixture
def stale(monkeypatch, tmp_path):
    """Have every look at the claims fail, as on a network disk whose server was restarted."""

    def stat(path: Path, **more):
        if path.parent == tmp_path / "claims":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path, **more)

    real = Path.stat
    monkeypatch.setattr(Path, "stat", stat)
    return monkeypatch


def test_a_look_at_the_claims_that_fails_harms_no_run_and_is_made_again(tmp_path, stale):
    stale.setattr("rundir.run.FENCE_INTERVAL_S", 0)
    successor = tmp_path / "claims" / "0.2"
    run = Run(tmp_path / "run", attempt=1, successor=successor)
    run.log("train", 1, loss=1.0)
    run.progress(1, 1)
    assert run.checkpoints
    assert not run.is_superseded
    stale.undo()
    successor.parent.mkdir()
    successor.touch()
    assert run.is_superseded


def test_a_run_looks_for_a_later_attempt_at_most_every_two_seconds_besides_its_writes(
    tmp_path, monkeypatch
):
    run = Run(tmp_path, attempt=1, successor=tmp_path / "0.2")
    looks, real = [], Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: looks.append(path) or real(path))
    for step in range(1000):
        run.log("train", step, loss=1.0)
    assert len(looks) <= 1


def test_a_write_that_took_long_gives_way_to_an_attempt_begun_meanwhile(tmp_path, monkeypatch):
    """A disk that hangs: another machine goes on with the run before the record is in place."""
    run = Run(tmp_path, attempt=1)
    sync = os.fsync

    def begin_another(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        Run(tmp_path, attempt=2)
        sync(handle)

    monkeypatch.setattr(os, "fsync", begin_another)
    with pytest.raises(Superseded):
        run.end(State.COMPLETED)
    assert read_status(tmp_path).attempt == 2
    assert not list(tmp_path.glob(".status*"))
