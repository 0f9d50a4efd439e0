"""Packing, retry and rules on this machine, and the parts of a worker one by one."""

import itertools
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from rundir import State, Status, UserError, read_status
from rundir.files import write_status
from rundir.run import FENCE_INTERVAL_S
from sweeps.planning.plan import Plan, PlannedRun
from sweeps.records import claims
from sweeps.records.failures import Failures
from sweeps.records.ledger import LOCAL, SLURM, Note, Share, Submission
from sweeps.records.owners import Owner
from sweeps.records.rules import Rules
from sweeps.workers import warmup
from sweeps.workers.deadline import Deadline

SEEDS = "seed=1,901,906,902,2"


def launch(toy, *more: str) -> tuple[str, ...]:
    return ("launch", "-m", *toy, "paths.sweep=s", *more)


def spans(shell) -> list[dict]:
    return [json.loads(path.read_text()) for path in (shell.cwd / "multirun").rglob("status.json")]


def test_promise_07_a_crash_a_kill_and_an_exit_leave_the_runs_beside_them_alone(shell, toy):
    """As many side by side as this machine has cores; on SLURM five at once, in tests/slurm."""
    cores = len(os.sched_getaffinity(0))
    shell.env["TOY_STEP_S"] = "0.2"
    shell(*launch(toy, SEEDS, "cluster.runs_per_node=5"), code=1)
    runs = {run["name"].split("-")[1]: run for run in shell.status("s")}
    assert [runs[seed]["state"] for seed in ("1", "2")] == ["completed"] * 2
    assert [runs[seed]["state"] for seed in ("901", "902", "906")] == ["failed"] * 3
    assert "killed by SIGKILL" in runs["906"]["reason"]
    most = max(
        sum(s["started_at"] <= one["started_at"] < s["ended_at"] for s in spans(shell))
        for one in spans(shell)
    )
    assert min(2, cores) <= most <= cores
    assert len({one["pid"] for one in spans(shell)}) == 5


def test_promise_02_a_run_that_failed_is_never_shown_as_completed(shell, toy):
    shell(*launch(toy, "seed=1,901,902,903,905,906"), code=1)
    for run in shell.status("s"):
        assert (run["state"] == "completed") == (run["name"].split("-")[1] == "1")
        assert run["state"] == "completed" or run["reason"]


def test_promise_20_one_failure_hides_no_other_and_fail_fast_is_an_option(shell, toy):
    shell(*launch(toy, "seed=901,902,1", "cluster.workers=1"), code=1)
    assert [run["state"] for run in shell.status("s")] == ["failed", "failed", "completed"]
    shell(*launch(toy, "seed=901,902,3,4", "cluster.workers=1", "cluster.fail_fast=true"), code=1)
    runs = shell.status("s")
    assert [run["state"] for run in runs[3:]] == ["planned"] * 2
    assert runs[3]["reason"] == "not started: 1 run failed (cluster.max_failures = 1)"


def test_a_failed_run_is_begun_again_where_the_rules_say_so_and_no_more_often(shell, toy):
    more = ("cluster.requeue_on=[failed]", "cluster.max_requeues=2")
    shell(*launch(toy, "seed=901,1", *more), code=1)
    runs = shell.status("s")
    assert [run["state"] for run in runs] == ["failed", "completed"]
    made = [
        len(json.loads((shell.cwd / run["directory"] / "run.json").read_text())["attempts"])
        for run in runs
    ]
    assert made == [3, 1]


def test_rules_say_in_words_when_a_run_is_not_begun_again():
    rules = Rules(max_requeues=2)
    assert rules.refusal(State.PREEMPTED, 1) is None
    assert rules.refusal(State.LOST, 0) is None, "where nobody knows, its node may have failed"
    assert rules.refusal(State.FAILED, 0) == "failed is not in cluster.requeue_on"
    assert rules.refusal(State.NODE_FAIL, 2) == "begun again 2 times (cluster.max_requeues = 2)"
    assert not Rules(max_requeues=0).requeues


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"max_requeues": -1}, "cluster.max_requeues = -1; must be at least 0"),
        ({"max_failures": 0}, "cluster.max_failures = 0; must be null or at least 1"),
        (
            {"requeue_on": ["preemted"]},
            (
                "unknown end of a run preemted in cluster.requeue_on; must be one of: failed, "
                "lost, node_fail, out_of_memory, preempted, timeout; did you mean preempted?"
            ),
        ),
        (
            {"max_failures": 3, "fail_fast": True},
            "cluster.fail_fast = true; means cluster.max_failures = 1, which is given as 3",
        ),
    ],
)
def test_rules_that_cannot_work_are_refused(node, said):
    given = {"max_requeues": 3, "requeue_on": [], "max_failures": None, "fail_fast": False}
    with pytest.raises(UserError) as refused:
        Rules.of(**{**given, **node})
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "cluster.runs_per_gpu=2",
            (
                "error: cluster.runs_per_gpu = 2; must be null: no GPU is asked for; "
                "cluster.runs_per_node packs runs on CPUs\n"
            ),
        ),
        (
            "cluster.runs_per_node=0",
            "error: cluster.runs_per_node = 0; must be null or at least 1\n",
        ),
    ],
)
def test_packing_that_cannot_work_is_one_line(shell, toy, override, said):
    assert shell(*launch(toy, "seed=1", override), code=2).stderr == said
    assert os.listdir(shell.cwd) == []


def test_a_submission_comes_back_from_its_record_as_it_was(tmp_path):
    rules = Rules(1, (State.FAILED,), 4)
    share = Share(LOCAL, ((0, 1), (1, 3)), 1, drain=True, threads=2, slots=3, rules=rules)
    submission = Submission("abc", share, "code", "/", {"sha": "1"}, "launch")
    submission.write(tmp_path)
    assert Submission.read(tmp_path, "abc") == submission


def test_notes_are_found_by_kind_and_element_until_retracted(tmp_path):
    share = Share(LOCAL, ((0, 1),), 1, drain=True, threads=1)
    submission = Submission("abc", share, "code", "/")
    submission.write(tmp_path)
    submission.note(tmp_path, Note.REQUEUED, 3, "by itself")
    submission.note(tmp_path, Note.UNSTARTED, 0, "no time")
    assert submission.notes(tmp_path) == {
        (Note.REQUEUED, 3): "by itself",
        (Note.UNSTARTED, 0): "no time",
    }
    submission.retract(tmp_path, Note.REQUEUED, 3)
    assert set(submission.notes(tmp_path)) == {(Note.UNSTARTED, 0)}


def test_failures_of_one_launch_are_counted_together(tmp_path):
    first, second = (Failures(tmp_path, "launch", Rules(max_failures=2)) for _ in range(2))
    first.add(7)
    assert second.refusal() is None
    second.add(8)
    assert first.refusal() == "2 runs failed (cluster.max_failures = 2)"
    assert Failures(tmp_path, "next", Rules(max_failures=2)).refusal() is None


def test_nothing_is_begun_that_cannot_reach_its_first_step_before_the_limit(tmp_path):
    """The limit and its warning come from the share; how long a run needs from those that ended."""
    share = Share(LOCAL, ((0, 1),), 1, drain=True, threads=1, timeout_min=2, signal_delay_s=60)
    deadline = Deadline.of(share)
    assert deadline.refusal() is None
    plan = Plan("s", tmp_path)
    run = PlannedRun(0, "run", "run", "f" * 64, (), {}, 0)
    (tmp_path / "run").mkdir()
    began = time.time() - 100
    records = [
        {"stream": "train", "step": 1, "t": began - 500, "attempt": 1},
        {"stream": "train", "step": 5, "t": began + 90, "attempt": 2},
        {"stream": "train", "step": 6, "t": began + 95, "attempt": 2},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "run" / "metrics.jsonl").write_text(lines)
    deadline.learn(plan, run, Status(State.COMPLETED, 2, started_at=began, ended_at=began + 99))
    assert deadline.needed_s == pytest.approx(90)
    assert deadline.refusal() == (
        "1:00 were left before the time limit, a run takes 1:30 to its first step"
    )


def test_slurms_word_on_the_end_of_the_job_comes_first(monkeypatch):
    share = Share(LOCAL, ((0, 1),), 1, drain=True, threads=1, timeout_min=60, signal_delay_s=20)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 30))
    deadline = Deadline.of(share)
    assert 5 < deadline.left_s <= 10
    assert deadline.is_here
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    assert Deadline.of(share).left_s == pytest.approx(3580, abs=5)


def test_a_completed_run_counts_neither_as_a_failure_nor_as_to_be_begun_again(tmp_path: Path):
    assert Rules().refusal(State.COMPLETED, 0) is not None
    assert Failures(tmp_path, "launch", Rules()).refusal() is None


def test_runs_that_share_a_gpu_here_see_that_one_alone(shell, toy):
    """The worker goes by CUDA_VISIBLE_DEVICES, as CUDA does; no GPU is needed to be told one."""
    shell.env |= {"CUDA_VISIBLE_DEVICES": "4,7", "TOY_STEP_S": "0.1"}
    shell(*launch(toy, "seed=1,2,3,4", "cluster.runs_per_gpu=2"))
    logs = [path.read_text() for path in (shell.cwd / "multirun").rglob("train.log")]
    assert len(logs) == 4
    assert {re.search(r"GPUs (\S+) ", log)[1] for log in logs} <= {"4", "7"}
    (submission,) = (shell.cwd / "multirun/s/.sweep/submissions").iterdir()
    share = Submission.read(shell.cwd / "multirun/s/.sweep", submission.name).share
    assert share.slots == min(2, len(os.sched_getaffinity(0)))
    assert share.elements == 2


def test_promise_08_a_worker_takes_the_next_run_the_moment_it_is_free(shell, toy):
    """One long run and seven short ones: in batches, short ones would wait for the long one."""
    shell.env["TOY_STEP_S"] = "0.1"
    steps = "training.training_params.max_steps=60,2,3,4,5,6,7,8"
    shell(*launch(toy[:2], steps, "cluster.workers=2"))
    ours = shell.cwd / "multirun/s/.sweep"
    worker_of = {p.stem: json.loads(p.read_text())["pid"] for p in (ours / "claims").iterdir()}
    runs = [(worker_of[str(run["index"])], run) for run in shell.status("s")]
    assert {run["state"] for _, run in runs} == {"completed"}
    last_began = max(run["started_at"] for _, run in runs)
    assert len(set(worker_of.values())) == min(2, len(os.sched_getaffinity(0)))
    for one in set(worker_of.values()):
        mine = sorted((r["started_at"], r["ended_at"]) for worker, r in runs if worker == one)
        gaps = [after[0] - before[1] for before, after in itertools.pairwise(mine)]
        assert all(0 <= gap < 1.5 for gap in gaps), gaps
        assert mine[-1][1] >= last_began, "no worker ends while a run waits"
    if len(set(worker_of.values())) == 2:
        assert last_began < runs[0][1]["ended_at"], "none waited for the long one"


@pytest.mark.parametrize("task", ["toy.run", "toy.run_deafly"])
def test_a_run_that_was_begun_elsewhere_meanwhile_ends_here_and_writes_nothing_more(
    shell, toy, task
):
    """The test stands for a worker of another machine, where SLURM began the element again."""
    shell.env["TOY_STEP_S"] = "0.05"
    steps = "training.training_params.max_steps=4000"
    first = shell.start(*launch(toy, "seed=1,2", f"task={task}", steps, "cluster.workers=1"))
    home = shell.cwd / "multirun/s/.sweep"
    while not any(path.stat().st_size for path in shell.find("metrics.jsonl")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    (metrics,) = shell.find("metrics.jsonl")
    claims.claim(home / "claims", "0", 2, Owner("elsewhere", "boot", 1, 1, "7", 1))
    theirs = Status(State.RUNNING, 2, "elsewhere", step=7)
    write_status(metrics.parent, theirs)
    ours, deadline = claims.read(home / "claims", "0", 1).owner, time.monotonic() + 30
    while ours.is_alive_here():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    seconds = records[-1]["t"] - (home / "claims" / "0.2").stat().st_mtime
    assert seconds <= FENCE_INTERVAL_S + 1
    assert read_status(metrics.parent) == theirs
    assert not (home / "claims" / "1.1").exists(), "whoever has the run has all of the worker's"


SLOW_IMPORT = """
import pathlib, sys, time

pathlib.Path("importing").touch()
time.sleep(1)
sys.path.remove("")
del sys.modules["NAME"]
import NAME
from sweeps.records import freeze

freeze.verify = lambda _: None
"""
"""Stands before a module for a disk that takes a second to read it; the code is not frozen."""


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGUSR2, "omegaconf"), (signal.SIGTERM, "omegaconf"), (signal.SIGTERM, "rundir")],
)
def test_a_worker_that_is_stopped_while_it_starts_says_so_instead_of_dying(
    shell, make_sweep, number, name
):
    plan = make_sweep(runs=1).plan
    submission = Submission("abc", Share(SLURM, ((0, 1),), 1, False, 1), "code", "/")
    submission.write(plan.home)
    (shell.cwd / f"{name}.py").write_text(SLOW_IMPORT.replace("NAME", name))
    start = "import sys; sys.path.insert(0, ''); import runpy; "
    start += "runpy.run_module('sweeps.workers', run_name='__main__')"
    starting = shell.start("-c", start, str(plan.root.absolute()), "abc", "--element", "0")
    while not (shell.cwd / "importing").exists():
        assert starting.poll() is None, starting.communicate()
        time.sleep(0.02)
    starting.send_signal(number)
    _, said = starting.communicate(timeout=60)
    assert starting.returncode == 0, said
    told = submission.notes(plan.home)[Note.UNSTARTED, 0]
    assert told == f"not started: the worker was stopped by {signal.Signals(number).name}"


def test_a_local_workers_threads_are_those_of_its_share_also_inside_a_job(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "16")
    local, element = (Share(b, ((0, 1),), 1, True, 1) for b in (LOCAL, SLURM))
    assert (warmup.threads(local), warmup.threads(element)) == (1, 16)
