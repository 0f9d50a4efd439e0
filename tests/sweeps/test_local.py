"""Sweeps on this machine, launched as a user launches them, with the toy task."""

import json
import os
import shlex
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

LR = "optimizer.optimizer_params.lr"


def records(shell) -> list[dict]:
    """Return every metrics record of every run of the sweep."""
    return [
        {"run": file.parent.name, **json.loads(line)}
        for file in shell.find("metrics.jsonl")
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
        if b"sweeps.workers" in words and any(os.fsencode(shell.cwd) in word for word in words):
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


def test_a_launch_whose_progress_nobody_reads_goes_on_to_its_end(shell, toy):
    process = shell.start(*launch(toy))
    process.stderr.close()
    assert process.wait(60) == 0
    assert [run["state"] for run in shell.status("s")] == ["completed"] * 3


@pytest.mark.parametrize("shut", ["| true", ">&-"])
def test_a_status_that_nobody_reads_is_no_failure(shell, toy, shut):
    shell(*launch(toy))
    words = shlex.join(shell.command("-m", "sweeps", "status", "s"))
    done = subprocess.run(
        ["bash", "-c", f"{words} {shut}; exit ${{PIPESTATUS[0]}}"],
        cwd=shell.cwd,
        env=shell.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


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
        (905, "out_of_memory", "MemoryError"),
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
        states = [json.loads(p.read_text()) for p in shell.find("status.json")]
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


def test_a_launch_that_planned_while_another_one_ran_keeps_its_runs(shell, toy):
    """The plan is read again under the lock: no index ever changes its meaning."""
    slow = shell.start(
        "launch", "-m", *toy, "check=toy.check_slowly", "paths.sweep=s", f"{LR}=3,4,5"
    )
    shell("launch", "-m", *toy, "paths.sweep=s", f"{LR}=1,2")
    slow.communicate(timeout=120)
    runs = shell.status("s")
    assert [run["name"].split("-")[1] for run in runs] == ["1", "2", "3", "4", "5"]
    assert {run["state"] for run in runs} == {"completed"}
    assert len({r["run"] for r in records(shell)}) == 5


def test_a_task_that_cannot_be_imported_takes_no_neighbour_along(shell, toy):
    shell("launch", "-m", "paths.sweep=s", *toy[1:], "task=broken.run,toy.run", code=1)
    states = {run["state"]: run["reason"] for run in shell.status("s")}
    assert states == {"completed": None, "failed": "RuntimeError: no such library"}


def test_a_moved_project_directory_is_launched_again(shell, toy, tmp_path):
    shell.cwd = tmp_path / "before"
    shell.cwd.mkdir()
    shell("launch", "-m", *toy, "paths.sweep=s", f"{LR}=1,2")
    shell.cwd = shell.cwd.rename(tmp_path / "after")
    shell("launch", "-m", *toy, "paths.sweep=s", f"{LR}=1,2,3")
    assert {run["state"] for run in shell.status("s")} == {"completed"}


def test_a_worker_that_refuses_to_start_says_why_in_the_status(shell, toy):
    shell("launch", "-m", *toy, "paths.sweep=s", f"{LR}=1")
    from sweeps.records.ledger import Submission

    home = shell.cwd / "multirun/s/.sweep"
    name = next((home / "submissions").iterdir()).name
    code = Submission.read(home, name).code
    (home / "code" / code / "new.py").write_text("")
    (home / "claims" / "0.1").unlink()
    next((shell.cwd / "multirun/s").rglob("status.json")).unlink()
    worker = shell.start(
        "-m", "sweeps.workers", str(shell.cwd / "multirun/s"), name, "--element", "0"
    )
    worker.communicate()
    # The project's own code is no frozen copy of that name, so verification fails.
    (run,) = shell.status("s")
    assert run["state"] == "lost"
    assert "has changed since submission" in run["reason"]


def test_what_cannot_change_a_result_is_taken_from_the_latest_launch(shell, toy):
    shell("launch", "-m", *toy, "paths.sweep=s", "seed=903", "+logging.tag=1", code=1)
    shell("launch", "-m", *toy, "paths.sweep=s", "seed=903", "+logging.tag=2", code=1)
    record = json.loads(next((shell.cwd / "multirun").rglob("run.json")).read_text())
    assert record["config"]["logging"]["tag"] == 2
    assert len(record["attempts"]) == 2


def test_completed_runs_stay_completed_when_their_claims_are_lost(shell, toy):
    shell(*launch(toy))
    before = records(shell)
    for claim in (shell.cwd / "multirun/s/.sweep/claims").iterdir():
        claim.unlink()
    assert "3 completed; none to submit" in shell(*launch(toy)).stderr
    assert records(shell) == before


def test_the_environment_that_hydra_sets_for_jobs_is_set_for_runs(shell, toy):
    shell("launch", "-m", *toy, "paths.sweep=s", "seed=1", "+hydra.job.env_set.TOY_STEP_S=0.4")
    (run,) = shell.status("s")
    assert run["ended_at"] - run["started_at"] > 1.0


def test_a_plus_on_the_command_line_also_replaces_a_key_of_the_definition(shell, toy):
    done = shell("launch", "sweep=quickstart", f"++{LR}=0.5", "dry_run=true")
    assert "2 runs to submit" in done.stdout


def no_file_above_1_kb():
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")])
def test_what_cannot_be_written_is_said_in_words(shell, toy, sweep):
    """A file-size limit stands for the full disk; the error is the same but for its number."""
    launcher = shell.start("launch", *sweep, *toy, preexec_fn=no_file_above_1_kb)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "Traceback" not in said
    assert "File too large" in said.splitlines()[-1]
