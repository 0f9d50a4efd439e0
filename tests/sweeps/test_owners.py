"""Whose claim it is when container, job and restart make it hard to tell."""

import os

import pytest

from sweeps.cluster import requeue
from sweeps.records.ledger import LOCAL, SLURM, Share, Submission
from sweeps.records.owners import Owner, myself


def share(backend: str) -> Share:
    return Share(backend, ((0, 1),), 1, drain=True, threads=1)


def test_a_process_of_another_container_of_this_host_may_live():
    me = myself()
    boot = me.boot.split()[0]
    assert Owner(me.host, f"{boot} pid:[1]", me.pid, me.started).is_alive(None)
    assert Owner(me.host, boot, me.pid, me.started).is_alive(None)
    assert not Owner(me.host, "another-boot pid:[1]", me.pid, me.started).is_alive(None)


def test_an_owner_comes_back_from_a_record_with_and_without_restarts():
    record = {"host": "h", "boot": "b", "pid": 1, "started": 2, "job": "7_0"}
    assert Owner.from_record(record) == Owner("h", "b", 1, 2, "7_0")
    assert Owner.from_record({**record, "restarts": 3, "of_later": 1}).restarts == 3


def test_only_an_earlier_incarnation_of_the_same_job_is_known_to_be_gone():
    def there(job, restarts):
        return Owner("elsewhere", "boot", 1, 1, job, restarts)

    assert there("7_0", 0).is_before(there("7_0", 1))
    assert not there("7_0", 1).is_before(there("7_0", 1)), "a fellow task of this incarnation"
    assert not there("7_1", 0).is_before(there("7_0", 1))
    assert not there(None, 0).is_before(there(None, 1))
    assert not myself("7_0").is_before(there("7_0", 1)), "this very process lives"


def test_a_local_worker_is_not_the_job_around_it(monkeypatch, tmp_path):
    """The job is the user's own: it is neither recorded as the worker's nor ever requeued."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    local, element = requeue.claimant(share(LOCAL)), requeue.claimant(share(SLURM))
    assert (local.job, local.restarts) == (None, 0)
    assert (element.job, element.restarts) == ("7", 2)
    denials = [
        requeue.requeue(Submission("abc", share(backend), "code", "/"), tmp_path, 0)
        for backend in (LOCAL, SLURM)
    ]
    assert denials == ["outside SLURM there is no queue", "squeue is not on this machine's PATH"]


@pytest.mark.parametrize("begun", [0, 1])
def test_a_worker_that_slurm_has_given_up_leaves_the_next_incarnation_of_its_element_alone(
    monkeypatch, tmp_path, begun
):
    asked = tmp_path / "asked"
    for name, said in (("squeue", "RUNNING"), ("scontrol", f"JobId=7 Restarts={begun} Requeue=1")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} $* >>{asked}\necho '{said}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.fspath(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    submission = Submission("abc", share(SLURM), "code", "/")
    submission.write(tmp_path)
    denial = requeue.requeue(submission, tmp_path, 0)
    assert denial == ("SLURM has begun the job again already, as restart 1" if begun else None)
    assert ("scontrol requeue 7" in asked.read_text()) == (not begun)
    assert bool(submission.notes(tmp_path)) == (not begun)
