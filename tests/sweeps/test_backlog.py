"""What a worker takes: its share, what others left behind, and nothing that a live one holds."""

import subprocess
import sys

import pytest

from rundir import State, read_status
from sweeps.records import claims
from sweeps.records.ledger import LOCAL, SLURM, Share, Submission
from sweeps.records.owners import Owner, myself, named
from sweeps.records.rules import Rules
from sweeps.workers.backlog import Backlog
from sweeps.workers.slots import Attempt


def backlog(sweep, backend: str = LOCAL, *, drain: bool = True, **more) -> Backlog:
    runs = tuple((run.index, 1) for run in sweep.plan.runs)
    share = Share(backend, runs, 1 if drain else len(runs), drain=drain, threads=1, **more)
    return Backlog(sweep.plan, Submission("abc", share, "code", "/"), 0)


def taken(found: Backlog) -> list[tuple[int, int]]:
    taken = iter(found.take, None)
    return [(run.index, attempt) for run, attempt in taken]


@pytest.fixture
def restarted(monkeypatch):
    """Be in a job that SLURM has begun again."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")


@pytest.mark.parametrize("job", [None, "7"])
def test_local_workers_in_a_restarted_job_leave_their_live_fellows_runs_alone(
    restarted, make_sweep, job
):
    sweep = make_sweep(runs=2)
    claims.claim(sweep.plan.claims, "0", 1, myself(job))
    assert taken(backlog(sweep)) == [(1, 1)]


@pytest.mark.parametrize("drain", [True, False])
def test_a_restarted_element_goes_on_with_its_own_run_and_no_live_fellows(
    restarted, make_sweep, drain
):
    for owner, expected in (
        (Owner("elsewhere", "boot", 1, 1, "7", 0), [(0, 2)]),
        (Owner("elsewhere", "boot", 1, 1, "7", 1), []),
        (myself("7"), []),
    ):
        sweep = make_sweep(f"{owner.host}-{owner.restarts}-{drain}", runs=1)
        claims.claim(sweep.plan.claims, "0", 1, owner)
        assert taken(backlog(sweep, SLURM, drain=drain)) == expected


def test_a_run_that_a_fellow_loses_later_is_taken_by_a_worker_that_still_works(make_sweep):
    sweep = make_sweep(runs=3)
    fellow = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    claims.claim(sweep.plan.claims, "0", 1, named(fellow.pid))
    ours = backlog(sweep)
    assert taken(ours) == [(1, 1), (2, 1)]
    fellow.communicate()
    assert taken(ours) == [(0, 2)]
    sweep.record(1, State.PREEMPTED)
    assert taken(ours) == [(1, 2)]
    sweep.record(2, State.COMPLETED)
    assert taken(ours) == []


def test_a_later_look_reads_no_run_that_has_ended_for_good(make_sweep, monkeypatch):
    sweep = make_sweep(runs=3)
    for index in range(3):
        sweep.record(index, State.COMPLETED)
    ours, read = backlog(sweep), []

    def counted(directory):
        read.append(directory)
        return read_status(directory)

    monkeypatch.setattr("sweeps.workers.backlog.read_status", counted)
    assert [taken(ours), len(read)] == [[], 3]
    assert [taken(ours), len(read)] == [[], 3]


def test_what_was_put_back_waits_until_it_is_begun(make_sweep):
    sweep = make_sweep(runs=1)
    ours = backlog(sweep, rules=Rules(requeue_on=(State.FAILED,)))
    assert taken(ours) == [(0, 1)]
    attempt = Attempt(sweep.plan.runs[0], 1, 0)
    ours.put_back(attempt)
    assert ours.waiting() == [attempt]
    assert taken(ours) == [(0, 2)]
    assert ours.waiting() == []


@pytest.mark.parametrize("drain", [True, False])
def test_unbegun_are_those_that_nobody_has_claimed(make_sweep, drain):
    sweep = make_sweep(runs=1)
    ours = backlog(sweep, drain=drain)
    assert ours.unbegun() == 1
    ours.take()
    assert ours.unbegun() == 0


def test_one_element_of_many_does_not_list_the_claims_to_see_that_its_run_waits(
    make_sweep, monkeypatch
):
    sweep = make_sweep(runs=3)
    monkeypatch.setattr(claims, "attempts", None)
    assert backlog(sweep, drain=False).unbegun() == 1
