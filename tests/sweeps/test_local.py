"""Sweeps on this machine, launched as a user launches them, with the toy task."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

LR = "optimizer.optimizer_params.lr"


def records(shell) -> list[dict]:
    """Return every metrics record of every run of the sweep."""
    files = sorted((shell.cwd / "multirun").rglob("metrics.jsonl"))
    return [
        {"run": file.parent.name, **json.loads(line)}
        for file in files
        for line in file.read_text().splitlines()
    ]


def worker_pids(shell) -> list[int]:
    """Return the processes of this test's sweeps: workers and their runs."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"sweeps.worker" in words and any(os.fsencode(shell.cwd) in word for word in words):
            found.append(int(folder.name))
    return found


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def launch(toy, *more: str) -> tuple[str, ...]:
    return ("launch", "-m", *toy, "paths.sweep=s", f"{LR}=0.1,0.2,0.3", *more)


def test_every_run_is_carried_out_once_and_the_second_launch_does_nothing(shell, toy):
    first = shell(*launch(toy))
    assert "3 runs: 3 completed" in first.stderr
    before = records(shell)
    assert Counter(r["run"] for r in before) == {r["run"]: 3 for r in before}
    assert len({r["run"] for r in before}) == 3
    again = shell(*launch(toy))
    assert "3 runs: 3 completed; none to submit" in again.stderr
    assert records(shell) == before


def test_a_run_directory_holds_the_files_that_the_design_names(shell, toy):
    shell(*launch(toy, "optimizer=muon"))
    run = next((shell.cwd / "multirun/s/gpt-tiny/shakespeare/muon").glob("lr-0.1-*"))
    assert {p.name for p in (run / ".hydra").iterdir()} == {
        "config.yaml",
        "hydra.yaml",
        "overrides.yaml",
    }
    record = json.loads((run / "run.json").read_text())
    assert record["sweep"] == "s"
    assert record["index"] == 0
    assert len(record["signature"]) == 64
    assert run.name.endswith(record["signature"][:6])
    assert record["config"]["optimizer"]["optimizer_params"]["lr"] == 0.1
    assert f"{LR}=0.1" in record["overrides"]
    assert record["attempts"][0]["threads"] == 1
    assert record["git"]["sha"]
    assert record["packages"]["hydra-core"]
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"], status["exit_code"]) == ("completed", 3, 0)


def test_extending_a_sweep_runs_only_what_is_new_and_keeps_indices(shell, toy):
    shell(*launch(toy))
    done = shell("launch", "-m", *toy, "paths.sweep=s", f"{LR}=0.3,0.4")
    assert "2 runs: 1 planned, 1 completed; 1 to submit" in done.stderr
    assert [run["index"] for run in shell.status("s")] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("seed", "state", "reason"),
    [
        (901, "failed", "killed by SIGSEGV"),
        (902, "failed", "the process exited with code 3 without ending the run"),
        (903, "failed", "RuntimeError: the task is broken"),
        (904, "diverged", "loss is nan at step 2"),
        (905, "out_of_memory", "MemoryError: MemoryError"),
    ],
)
def test_one_bad_end_is_told_with_its_reason_and_leaves_the_neighbours_alone(
    shell, toy, seed, state, reason
):
    code = 0 if state == "diverged" else 1
    shell("launch", "-m", *toy, "paths.sweep=s", f"seed=1,{seed},2", code=code)
    found = {run["name"].split("-")[1]: run for run in shell.status("s")}
    assert (found[str(seed)]["state"], found[str(seed)]["reason"]) == (state, reason)
    assert found["1"]["state"] == found["2"]["state"] == "completed"
    assert found[str(seed)]["step"] == 3


def test_ctrl_c_checkpoints_and_the_next_launch_finishes_what_is_missing(shell, toy):
    shell.env["TOY_STEP_S"] = "0.1"
    more = launch(toy, "training.training_params.max_steps=20")
    first = shell.start(*more)
    wait_for(lambda: len(records(shell)) > 4)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "launch again to go on" in said
    assert not worker_pids(shell)
    assert "preempted" in {run["state"] for run in shell.status("s")}
    shell.env["TOY_STEP_S"] = "0.01"
    shell(*more)
    done = Counter((r["run"], r["step"]) for r in records(shell))
    assert len(done) == 60
    assert set(done.values()) == {1}, "resumed at the step after the checkpoint, none repeated"


def test_kill_9_of_the_launcher_loses_nothing_and_the_next_launch_joins_in(shell, toy):
    shell.env["TOY_STEP_S"] = "0.05"
    more = launch(toy, "training.training_params.max_steps=20")
    first = shell.start(*more)
    wait_for(lambda: len(records(shell)) > 4)
    first.kill()
    first.communicate()
    second = shell(*more)
    assert "3 runs: 3 completed" in second.stderr
    done = Counter((r["run"], r["step"], r["attempt"]) for r in records(shell))
    assert len(done) == 60
    assert set(done.values()) == {1}
    assert {attempt for _, _, attempt in done} == {1}, "the workers went on by themselves"


def test_kill_9_of_a_worker_takes_its_run_along_and_both_are_recovered(shell, toy):
    shell.env["TOY_STEP_S"] = "0.05"
    more = launch(toy, "training.training_params.max_steps=20", "cluster.workers=1")
    first = shell.start(*more)
    wait_for(lambda: len(records(shell)) > 4)
    os.kill(min(worker_pids(shell)), signal.SIGKILL)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "1 lost" in said
    assert not worker_pids(shell), "the run must not outlive the claim on it"
    shell(*more)
    assert {run["state"] for run in shell.status("s")} == {"completed"}


def test_a_sweep_never_runs_more_at_once_than_there_are_cores(shell, toy):
    shell.env["TOY_STEP_S"] = "0.1"
    cores = len(os.sched_getaffinity(0))
    seeds = ",".join(str(seed) for seed in range(2 * cores + 1))
    first = shell.start(
        "launch", "-m", *toy, "paths.sweep=a", f"seed={seeds}", "cluster.workers=64"
    )
    second = shell.start("launch", "-m", *toy, "paths.sweep=b", f"seed={seeds}")
    most = 0
    while first.poll() is None or second.poll() is None:
        states = [json.loads(p.read_text()) for p in shell.cwd.rglob("status.json")]
        most = max(most, sum(s["state"] == "running" for s in states))
        time.sleep(0.02)
    for launcher in (first, second):
        launcher.communicate()
        assert launcher.returncode == 0
    assert 0 < most <= cores


def test_two_launches_at_once_submit_nothing_twice(shell, toy):
    both = [shell.start(*launch(toy)) for _ in range(2)]
    for launcher in both:
        launcher.communicate(timeout=120)
    shell(*launch(toy))
    done = Counter((r["run"], r["step"]) for r in records(shell))
    assert set(done.values()) == {1}
    assert len(done) == 9
