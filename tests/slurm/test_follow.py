"""Following sweeps on a real SLURM: what is asked of it, how often, and what it can't tell."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

COUNTED = ("squeue", "sacct")


@pytest.fixture
def login(login, slurm, tmp_path):
    """Be on the login node; every question to SLURM is counted."""
    on(login, slurm, tmp_path)
    return login


def on(shell, slurm, tmp_path: Path) -> None:
    shell.env.update(slurm.env)
    folder = tmp_path / "counted"
    folder.mkdir()
    for name in COUNTED:
        real = slurm.run("sh", "-c", f"command -v {name}").stdout.strip()
        wrapper = folder / name
        wrapper.write_text(f'#!/bin/sh\necho {name} >>{tmp_path}/questions\nexec {real} "$@"\n')
        wrapper.chmod(0o755)
    shell.env["PATH"] = f"{folder}{os.pathsep}{shell.env['PATH']}"


def questions(login) -> list[str]:
    """Return the questions since the last call."""
    path = login.cwd / "questions"
    found = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def launch(toy, *more: str) -> tuple[str, ...]:
    return ("launch", "-m", *toy, "paths.sweep=s", "cluster=slurm", "cluster.timeout_min=10", *more)


def until(login, state: str) -> dict:
    """Return the first run once it is in the state."""
    return login.wait_until(lambda runs: runs[0]["state"] == state)[0]


def test_promise_14_status_of_any_number_of_runs_asks_squeue_once(login, slurm, toy):
    login(*launch(toy, "seed=1,2,3,4,5", "+cluster.additional_parameters.begin=now+1hour"))
    deadline = time.monotonic() + 30
    while "BeginTime" not in slurm.run("squeue", "--noheader", "--format=%r").stdout:
        assert time.monotonic() < deadline  # SLURM has a reason once its scheduler has looked
        time.sleep(0.1)
    questions(login)
    runs = login.status("s")
    assert questions(login) == ["squeue"]
    assert {(run["state"], run["reason"]) for run in runs} == {("pending", "BeginTime")}


def test_watch_asks_once_a_refresh_and_ends_with_the_last_run(login, toy):
    login.env["TOY_STEP_S"] = "0.3"
    login(*launch(toy, "seed=1,903", "training.training_params.max_steps=20"))
    questions(login)
    began = time.monotonic()
    done = login("-m", "sweeps", "watch", "s", "--json", code=1)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["summary"]["states"] == {"completed": 1, "failed": 1}
    asked = questions(login)
    assert set(asked) == {"squeue"}
    assert len(lines) <= len(asked) <= 2 + (time.monotonic() - began) / 2


def test_a_job_on_hold_is_pending_with_slurms_words_and_how_to_let_it_start(login, slurm, toy):
    login(*launch(toy, "seed=1", "+cluster.additional_parameters.begin=now+1hour"))
    job = login.status("s")[0]["job"]
    slurm.run("scontrol", "hold", job)
    run = login.status("s")[0]
    assert run["state"] == "pending"
    assert re.match(r"JobHeld(User|Admin); `scontrol release` lets it start", run["reason"])


def test_promise_02_a_killed_worker_is_told_of_without_accounting(login, toy):
    login.env["TOY_STEP_S"] = "0.1"
    login(*launch(toy, "seed=1", "training.training_params.max_steps=1000"))
    until(login, "running")
    worker = json.loads((login.cwd / "multirun/s/.sweep/claims/0.1").read_text())["pid"]
    os.kill(worker, signal.SIGKILL)
    run = until(login, "failed")
    assert re.match(r"SLURM says FAILED \(\w+\) on n\d", run["reason"])
    assert re.fullmatch(r"n\d", run["node"])


def test_promise_14_with_the_controller_gone_the_records_count_and_a_warning_says_so(
    login, slurm, toy, tmp_path
):
    login(*launch(toy, "seed=1"))
    until(login, "completed")
    login(*launch(toy, "seed=1,2", "+cluster.additional_parameters.begin=now+1hour"))
    conf = Path(slurm.env["SLURM_CONF"]).read_text()
    nowhere = tmp_path / "slurm.conf"
    nowhere.write_text(re.sub(r"(?m)^SlurmctldPort=\d+", "SlurmctldPort=1", conf))
    login.env["SLURM_CONF"] = str(nowhere)
    done = login("-m", "sweeps", "status", "s")
    login.env["SLURM_CONF"] = slurm.env["SLURM_CONF"]
    assert "1 pending, 1 completed" in done.stdout
    assert "squeue does not answer; it may wait, run or be gone" in done.stdout
    assert "warning: squeue said: " in done.stderr
    assert "the states are from the runs' own records" in done.stderr


def test_cancel_and_logs_of_single_runs(login, toy):
    login.env["TOY_STEP_S"] = "0.1"
    login(*launch(toy, "seed=1,2", "training.training_params.max_steps=60"))
    until(login, "running")
    login("-m", "sweeps", "cancel", "s", "--runs", "0")
    followed = login("-m", "sweeps", "logs", "s", "0", "--follow")
    assert "stopped by SIG" in followed.stdout
    why = "cancelled by the user; stopped by SIG"
    assert until(login, "cancelled")["reason"].startswith(why)
    worker = login("-m", "sweeps", "logs", "s", "1", "--worker")
    assert "_log.out" in worker.stderr
    login("-m", "sweeps", "watch", "s")
    assert [run["state"] for run in login.status("s")] == ["cancelled", "completed"]
    assert "submitted 1 run as job " in login("-m", "sweeps", "retry", "s").stderr
    login("-m", "sweeps", "watch", "s")
    assert [run["state"] for run in login.status("s")] == ["completed", "completed"]


def test_promise_16_retry_says_why_the_run_failed_and_submits_it_again(login, toy):
    login(*launch(toy, "seed=1,903"))
    login("-m", "sweeps", "watch", "s", code=1)
    done = login("-m", "sweeps", "retry", "s", "--exclude-bad-nodes")
    assert "RuntimeError: the task is broken" in done.stderr
    assert "excluded nodes: none" in done.stderr
    assert "submitted 1 run as job " in done.stderr
    login("-m", "sweeps", "watch", "s", code=1)
    assert [run["attempts"] for run in login.status("s")] == [1, 2]


BROKEN_NODE = """
import os, time

def run(config, run):
    time.sleep(0.3)
    if os.environ["SLURMD_NODENAME"] == "n3":
        raise RuntimeError("no GPU on this node")
"""


def test_promise_23_the_bad_node_is_named_and_the_retry_leaves_it_out(login):
    (login.cwd / "broken_node.py").write_text(BROKEN_NODE)
    seeds = ",".join(str(seed) for seed in range(16))
    task = ("task=broken_node.run", "check=null", "cluster.cpus_per_task=8")
    login(*launch(task, f"seed={seeds}"))
    login("-m", "sweeps", "watch", "s", code=1)
    status = login("-m", "sweeps", "status", "s", code=1).stdout
    assert re.search(r"n3: (\d+) of \1 runs failed", status)
    assert "suspicious: n3; `retry --exclude-bad-nodes` avoids it" in status
    done = login("-m", "sweeps", "retry", "s", "--exclude-bad-nodes")
    assert "excluded nodes: n3" in done.stderr
    login("-m", "sweeps", "watch", "s")
    runs = login.status("s")
    assert {run["state"] for run in runs} == {"completed"}
    assert "n3" not in {run["node"] for run in runs}
    assert max(run["attempts"] for run in runs) == 2
