"""One worker in this process: what it does when runs, processes, claims or records fail it."""

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from rundir import Preempted, State, Status, Superseded, read_status
from rundir.files import write_status
from sweeps.records import claims
from sweeps.records.ledger import LOCAL, SLURM, Note, Share, Submission
from sweeps.records.owners import Owner
from sweeps.records.rules import Rules
from sweeps.workers import warmup, worker
from sweeps.workers.signals import STOP_SIGNALS
from sweeps.workers.slots import Attempt
from sweeps.workers.worker import Worker


@pytest.fixture
def make_worker(make_sweep):
    """Make a worker of a sweep in this process; pytest's signal handlers are put back."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def make(runs: int = 2, backend: str = LOCAL, *, slots: int = 2, **rules) -> Worker:
        plan = make_sweep(runs=runs).plan
        listed = tuple((run.index, 1) for run in plan.runs)
        share = Share(backend, listed, 1, True, 1, slots=slots, rules=Rules(**rules))
        submission = Submission("abc", share, "code", "/", launch="launch")
        submission.write(plan.home)
        return Worker(plan, submission, 0)

    yield make
    for number, handler in before.items():
        signal.signal(number, handler)


def notes(one: Worker) -> dict:
    return one.submission.notes(one.plan.home)


@pytest.fixture
def no_warm_up(monkeypatch):
    """Fail where a worker imports the task."""
    monkeypatch.setattr(warmup, "warm_up", None)


def test_a_worker_whose_sweep_was_cancelled_begins_nothing_and_imports_nothing(
    make_worker, no_warm_up
):
    ours = make_worker()
    ours.submission.cancel(ours.plan.home)
    assert (ours.work(), ours.began) == (0, 0)
    assert notes(ours) == {(Note.UNSTARTED, 0): "not started: the sweep was cancelled"}
    assert not ours.plan.claims.exists()


def test_a_worker_that_may_begin_nothing_imports_nothing(make_worker, no_warm_up):
    ours = make_worker(max_failures=1)
    ours._failures.add(7)
    assert (ours.work(), ours.began) == (0, 0)


def be_a_run(plan, _submission, attempt, **_) -> None:
    """Stand for a run of half a second."""
    time.sleep(0.5)
    write_status(plan.directory(attempt.run), Status(State.COMPLETED, attempt.number))
    os._exit(0)


@pytest.fixture
def short_runs(monkeypatch):
    """Have workers of this process fork runs of half a second."""
    monkeypatch.setattr(warmup, "warm_up", lambda plan, share: None)
    monkeypatch.setattr(worker, "be_the_run", be_a_run)


def test_a_run_that_cannot_be_begun_leaves_those_beside_it_to_their_end(make_worker, short_runs):
    """A file in the way of the run's directory stands for a disk that has no room for it."""
    ours = make_worker(runs=3)
    first, second, _ = (ours.plan.directory(run) for run in ours.plan.runs)
    second.parent.mkdir(parents=True)
    second.write_text("")
    assert ours.work() == 1
    assert read_status(first).state is State.COMPLETED
    assert notes(ours) == {(Note.UNSTARTED, 0): f"not started: {second}: File exists"}
    assert not (ours.plan.claims / "2.1").exists()


def test_a_process_that_cannot_be_forked_fails_the_run_and_frees_its_slot(
    make_worker, short_runs, monkeypatch
):
    def fork():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    ours = make_worker(runs=2)
    monkeypatch.setattr(os, "fork", fork)
    assert ours.work() == 1
    status = read_status(ours.plan.directory(ours.plan.runs[0]))
    assert status.state is State.FAILED
    assert status.reason == "could not be begun: Resource temporarily unavailable"
    assert not ours._slots.is_full
    assert not (ours.plan.claims / "1.1").exists()


def test_claims_that_cannot_be_written_stop_a_worker_without_a_traceback(make_worker, short_runs):
    ours = make_worker()
    ours.plan.claims.parent.mkdir(parents=True, exist_ok=True)
    ours.plan.claims.write_text("")
    assert ours.work() == 1
    assert "File exists" in notes(ours)[Note.UNSTARTED, 0]


def test_the_record_of_a_later_attempt_is_left_alone(make_worker):
    ours = make_worker()
    run = ours.plan.runs[0]
    directory = ours.plan.directory(run)
    directory.mkdir(parents=True)
    later = Status(State.RUNNING, 2, "n")
    write_status(directory, later)
    ours._settle(Attempt(run, 1, 0), signal.SIGKILL)
    assert read_status(directory) == later
    ours._tell({Attempt(run, 1, 0): "the user cancelled it"})
    assert read_status(directory) == later


@pytest.mark.parametrize("code", [Preempted.exit_code, 0, Superseded.exit_code])
def test_only_a_run_that_saw_itself_superseded_tells_that_its_worker_was_taken_for_gone(
    make_worker, code
):
    """A fellow may go on with a run that has ended before its own worker has looked."""
    ours = make_worker(1, requeue_on=(State.FAILED, State.PREEMPTED), max_failures=1)
    run = ours.plan.runs[0]
    ours.plan.directory(run).mkdir(parents=True)
    ours._backlog.take()
    claims.claim(ours.plan.claims, "0", 2, Owner("elsewhere", "boot", 1, 1, "7", 1))
    later = Status(State.RUNNING, 2, "n")
    write_status(ours.plan.directory(run), later)
    ours.stopped = "SIGTERM"
    ours._settle(Attempt(run, 1, 0), code << 8)
    said = ours._refusal()
    assert ("taken for gone" in said) == (code == Superseded.exit_code)
    assert read_status(ours.plan.directory(run)) == later
    assert not ours._interrupted
    assert not ours._backlog.waiting()
    assert ours._failures.refusal() is None


def test_a_run_that_exits_with_the_code_of_a_superseded_one_has_failed(make_worker):
    ours = make_worker(1)
    run = ours.plan.runs[0]
    ours.plan.directory(run).mkdir(parents=True)
    ours._settle(Attempt(run, 1, 0), Superseded.exit_code << 8)
    assert read_status(ours.plan.directory(run)).state is State.FAILED
    assert ours._refusal() is None


def test_a_record_that_cannot_be_read_leaves_the_runs_beside_it_to_their_end(
    make_worker, short_runs, monkeypatch
):
    ours = make_worker()
    failing = [OSError(errno.ESTALE, os.strerror(errno.ESTALE))]

    def read(directory: Path) -> Status | None:
        if failing:
            raise failing.pop()
        return read_status(directory)

    monkeypatch.setattr(worker, "read_status", read)
    assert ours.work() == 1
    assert ours.trouble == "Stale file handle"
    for run in ours.plan.runs:
        assert read_status(ours.plan.directory(run)).state is State.COMPLETED


@pytest.mark.parametrize("backend", [LOCAL, SLURM])
def test_a_run_put_back_that_cannot_be_begun_any_more_counts_as_failed(make_worker, backend):
    ours = make_worker(1, backend, requeue_on=(State.FAILED,), max_failures=1)
    run = ours.plan.runs[0]
    directory = ours.plan.directory(run)
    directory.mkdir(parents=True)
    ours._backlog.take()
    write_status(directory, Status(State.FAILED, 1, reason="exit code 3", exit_code=3))
    ours._settle(Attempt(run, 1, 0), 3 << 8)
    assert ours._failures.refusal() is None
    ours.stopped = "SIGTERM"
    ours._leave("the worker was stopped by SIGTERM")
    assert ours._failures.refusal() == "1 run failed (cluster.max_failures = 1)"
    told = "; not requeued: outside SLURM there is no queue" if backend == SLURM else ""
    assert read_status(directory).reason == f"exit code 3{told}"
