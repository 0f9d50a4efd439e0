"""A launcher killed between sbatch and the ledger: what other commands make of its intent."""

import os

import pytest

from sweeps.cluster import scheduler
from sweeps.cluster.intents import job_name, settle
from sweeps.records import ledger
from sweeps.records.ledger import SLURM, Share, Submission


@pytest.fixture
def killed(make_sweep, monkeypatch):
    """A sweep whose launcher died with an intent open; SLURM knows its job as 77."""
    sweep = make_sweep("s", 2)
    share = Share(SLURM, ((0, 1), (1, 1)), 2, drain=False, threads=1)
    Submission("abc", share, "hash", str(sweep.plan.root)).write(sweep.plan.home)
    ledger.record(sweep.plan.home, "intent", "abc")
    (sweep.plan.home / ledger.LOCK_FILE).touch()
    monkeypatch.setattr(scheduler, "ask", lambda *words, **_: f"77|{job_name('s', 'abc')}\n")
    return sweep.plan


def answers(plan):
    return [(entry.answer, entry.job) for entry in ledger.entries(plan.home)]


def test_an_open_intent_is_settled_by_the_jobs_name(killed):
    settle(killed)
    assert answers(killed) == [(ledger.TAKEN, "77")]


def test_an_intent_is_left_to_the_launcher_that_is_alive(killed):
    with ledger.locked(killed.home, killed.sweep):
        settle(killed)
    assert answers(killed) == [(None, None)]


def test_another_users_intents_are_left_alone(killed, monkeypatch):
    uid = os.getuid()
    monkeypatch.setattr("sweeps.cluster.intents.os.getuid", lambda: uid + 1)
    settle(killed)
    assert answers(killed) == [(None, None)]
