"""What SLURM's commands say, and what is made of their silence or absence."""

import os

import pytest

from rundir import ClusterError, State
from sweeps.cluster import scheduler
from sweeps.cluster.sbatch import array_executor, submit
from sweeps.follow import states
from sweeps.follow.lookout import Lookout
from sweeps.records.owners import Owner


@pytest.fixture
def squeue_shows(monkeypatch):
    """Have squeue print a text, and sacct nothing."""

    def show(text: str) -> None:
        answers = {"squeue": text, "sacct": ""}
        monkeypatch.setattr(scheduler, "ask", lambda name, *_, **__: answers[name])

    return show


def test_a_command_that_fails_is_quoted_whole_in_one_line_and_named_once():
    said = "squeue: error: a\nsqueue: error:  b\n\nNote: c\n"
    assert scheduler.words("squeue", said) == "a; b; Note: c"


def test_where_squeue_is_not_installed_what_may_wait_is_pending_and_launching_is_refused(
    make_sweep, monkeypatch
):
    sweep = make_sweep(runs=1)
    assert states.queue_of(sweep.plan) is None
    sweep.hand_over()
    monkeypatch.setenv("PATH", "/nowhere")
    lookout = Lookout(sweep.plan)
    assert lookout.look()[0].state is State.PENDING
    assert "squeue is not on this machine's PATH" in lookout.notes[0]
    with pytest.raises(ClusterError, match=r"^squeue is not on this machine's PATH"):
        states.queue_of(sweep.plan)


def test_what_a_site_hides_of_another_users_jobs_is_not_taken_for_lost(make_sweep, squeue_shows):
    lost = make_sweep(runs=1)
    lost.hand_over()
    lost.record(0, State.RUNNING, owner=Owner("n1", "elsewhere", 1, 1, "12_0"))
    squeue_shows("")
    theirs = scheduler.queue(os.getuid() + 1)
    assert states.survey(lost.plan, theirs)[0].state is State.RUNNING
    assert states.survey(lost.plan, scheduler.queue(os.getuid()))[0].state is State.LOST
    squeue_shows("99|N/A|RUNNING|n1|None|other\n")
    theirs = scheduler.queue(os.getuid() + 1)
    assert states.survey(lost.plan, theirs)[0].state is State.LOST


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Return a function that submits to an sbatch that says something and exits with a code."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def submit_to(text: str, code: int) -> str:
        (tmp_path / "words").write_text(text)
        (tmp_path / "sbatch").write_text(f"#!/bin/sh\ncat {tmp_path}/words >&2\nexit {code}\n")
        (tmp_path / "sbatch").chmod(0o755)
        (tmp_path / "scripts").mkdir()
        return submit(array_executor(tmp_path / "scripts"), "true")

    return submit_to


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("sbatch: unrecognized option '--bogus=1'\n", 255, "unrecognized option '--bogus=1'"),
        ("sbatch: error: a\nsbatch: error: Batch job submission failed: b\n", 1, "a; Batch job"),
        ("sbatch: error: Invalid --mem specification\n", 255, "Invalid --mem specification"),
        ("sbatch: error: Memory specification can not be satisfied\n", 1, "Memory spec"),
        ("", 1, "exit code 1"),
    ],
)
def test_what_sbatch_refuses_is_quoted_and_is_no_silence(sbatch, text, code, said):
    with pytest.raises(ClusterError, match=f"^sbatch said: {said}") as error:
        sbatch(text, code)
    assert not isinstance(error.value, scheduler.Unanswered)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", 124, "sbatch gave no answer within 60 s"),
        ("", 137, "sbatch was killed"),
        ("sbatch: error: x: Socket timed out on send/recv operation\n", 1, "sbatch said: x: Sock"),
        ("sbatch: error: x: Transport endpoint is not connected\n", 1, "sbatch said: x: Transp"),
        ("sbatch: error: x: Connection reset by peer\n", 1, "sbatch said: x: Connection reset"),
        ("sbatch: error: x: Message receive failure\n", 1, "sbatch said: x: Message receive"),
    ],
)
def test_an_sbatch_that_may_have_been_heard_is_looked_up(sbatch, text, code, said):
    with pytest.raises(scheduler.Unanswered, match=f"^{said}.*; whether it took the job is looked"):
        sbatch(text, code)
