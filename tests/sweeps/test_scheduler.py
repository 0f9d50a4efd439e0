"""What is made of the words of squeue and sacct, and how often they are asked."""

import os

import pytest

from rundir import ClusterError, State
from sweeps.cluster import scheduler
from sweeps.follow.lookout import Lookout, Patience
from sweeps.records.owners import Owner


@pytest.fixture
def slurm_says(tmp_path, monkeypatch):
    """Put commands on the PATH that print what SLURM would, and count how often they are asked."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def say(name: str, text: str, code: int = 0) -> None:
        (tmp_path / f"{name}.txt").write_text(text)
        count = f"echo asked >>{tmp_path}/{name}.asked"
        script = f"#!/bin/sh\n{count}\ncat {tmp_path}/{name}.txt\nexit {code}\n"
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)

    def asked(name: str) -> int:
        path = tmp_path / f"{name}.asked"
        return len(path.read_text().split()) if path.exists() else 0

    say.asked = asked
    return say


def test_squeue_tells_apart_what_waits_runs_is_held_and_has_ended(slurm_says):
    slurm_says(
        "squeue",
        "12|0|PENDING||Priority|a\n12|1|RUNNING|n1|None|a\n"
        "12|2|PENDING||launch failed requeued held|a\n"
        "12|3|TIMEOUT 2026-01-02T03:04:05|n2|TimeLimit|a\n"
        "12|4|COMPLETED|n2|None|a\n13|N/A|COMPLETING|n3|None|b|c\n12|5|CANCELLED N/A||None|a\n",
    )
    queue = scheduler.queue()
    assert sorted(queue) == ["12_0", "12_1", "12_2", "13"]
    assert queue["12_0"].why == "Priority"
    assert (queue["12_1"].why, queue["12_1"].node) == (None, "n1")
    assert queue["12_2"].why == "launch failed requeued held; `scontrol release` lets it start"
    assert queue["13"].why == "COMPLETING"
    assert queue.jobs == {"a": "12", "b|c": "13"}
    assert {element: end.at for element, end in queue.endings.items()} == {
        "12_3": "2026-01-02T03:04:05",
        "12_5": "",
    }
    ending = queue.endings["12_3"]
    assert (ending.state, ending.node) == (State.TIMEOUT, "n2")
    assert ending.reason == "SLURM says TIMEOUT (TimeLimit) on n2"


def test_sacct_tells_of_the_jobs_asked_for_alone(slurm_says):
    slurm_says(
        "sacct",
        "12_0|CANCELLED by 0|0:15|n1|2026-01-02T03:04:05\n"
        "12_1|FAILED|1:0|n2|Unknown\n12_2|RUNNING|0:0|n2|Unknown\n",
    )
    found = scheduler.endings({"12_0", "12_2"})
    assert {job: ending.state for job, ending in found.items()} == {"12_0": State.CANCELLED}
    assert found["12_0"].reason == "SLURM says CANCELLED by 0 (exit code 0:15) on n1"
    assert found["12_0"].at == "2026-01-02T03:04:05"


def test_a_refusal_carries_slurms_words(slurm_says):
    slurm_says("squeue", "", code=1)
    with pytest.raises(ClusterError, match="squeue said: exit code 1"):
        scheduler.queue()


@pytest.fixture
def lost(make_sweep):
    """A sweep whose run's job has left the queue without a record."""
    sweep = make_sweep(runs=1)
    sweep.hand_over()
    sweep.record(0, State.RUNNING, owner=Owner("n1", "elsewhere", 1, 1, "12_0"))
    return sweep


def test_promise_14_sacct_is_asked_until_it_has_caught_up_and_never_again(slurm_says, lost):
    slurm_says("squeue", "")
    slurm_says("sacct", "")
    lookout = Lookout(lost.plan)
    assert lookout.look()[0].state is State.LOST
    slurm_says("sacct", "12_0|NODE_FAIL|0:0|n3|2026-01-02T03:04:05\n")
    (run,) = lookout.look()
    assert run.reason == "SLURM says NODE_FAIL (exit code 0:0) on n3"
    for _ in range(3):
        assert lookout.look()[0].state is State.NODE_FAIL
    assert (slurm_says.asked("squeue"), slurm_says.asked("sacct")) == (5, 2)


def test_promise_14_a_sacct_that_does_not_know_or_refuses_is_not_asked_for_ever(slurm_says, lost):
    slurm_says("squeue", "")
    slurm_says("sacct", "")
    lookout = Lookout(lost.plan, Patience(lag_s=-1))
    assert [lookout.look()[0].state for _ in range(3)] == [State.LOST] * 3
    assert slurm_says.asked("sacct") == 0
    slurm_says("sacct", "", code=1)
    lookout = Lookout(lost.plan)
    assert [lookout.look()[0].state for _ in range(3)] == [State.LOST] * 3
    assert slurm_says.asked("sacct") == 1
    assert lookout.notes == [
        "sacct said: exit code 1; how 1 run ended is known only as far as shown"
    ]
