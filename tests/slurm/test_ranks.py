"""Runs of two nodes with two tasks each on a real SLURM, their ranks joined by gloo."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SHAPE = ("cluster=slurm", "cluster.timeout_min=10", "cluster.nodes=2", "cluster.tasks_per_node=2")
STEPS = "training.training_params.max_steps"
REAL = (
    "model=nano",
    "training.training_params.val_tokens_processed=4096",
    "+logging=default",
    "logging.logging_params.log_step=1",
)


@pytest.fixture
def login(shell, slurm_resolving):
    """Be on the login node of a cluster of two nodes whose names resolve."""
    shell.env.update(slurm_resolving.env)
    shell.env["OMP_NUM_THREADS"] = "1"
    yield shell
    slurm_resolving.run("scancel", "--me", check=False)
    slurm_resolving.wait_idle()


def at_step(login, step: int):
    return lambda runs: all((run.get("step") or 0) >= step for run in runs) or login.ended(runs)


def records(login, run: dict, stream: str = "train") -> list[dict]:
    lines = (login.cwd / run["directory"] / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["stream"] == stream]


def processes_of(directory: Path) -> dict[int, int]:
    """Return the run's processes, by rank."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            log = os.readlink(process / "fd" / "1")
        except OSError:
            continue
        if Path(log).parent == directory and Path(log).name.startswith("train"):
            found[int(Path(log).stem.removeprefix("train").removeprefix(".rank") or 0)] = int(
                process.name
            )
    return found


def test_promise_21_two_nodes_of_two_tasks_make_one_run_with_the_losses_of_one_process(login):
    sweep = ("launch", "-m", *REAL, f"{STEPS}=5", "optimizer=adamw,dap-ns-nadam")
    login(*sweep, *SHAPE, "paths.sweep=s", "cluster.workers=1")
    runs = login.wait_until(login.ended)
    assert [run["state"] for run in runs] == ["completed"] * 2, login.logs()
    login(*sweep, "paths.sweep=s", "paths.multirun=alone", "cluster.cpus_per_task=1")
    for run in runs:
        assert [record["step"] for record in records(login, run)] == [1, 2, 3, 4, 5]
        one = {**run, "directory": run["directory"].replace("multirun", "alone", 1)}
        for stream in ("train", "val"):
            losses = [record["loss"] for record in records(login, run, stream)]
            expected = [record["loss"] for record in records(login, one, stream)]
            assert losses == pytest.approx(expected, rel=1e-5)
        claims = login.cwd.glob(f"multirun/s/.sweep/claims/{run['index']}.*")
        assert len(list(claims)) == 1
        record = json.loads((login.cwd / run["directory"] / "run.json").read_text())
        assert [attempt["world_size"] for attempt in record["attempts"]] == [4]
    metrics = login.cwd.glob("multirun/s/**/metrics.jsonl")
    assert {file.parent for file in metrics} == {login.cwd / run["directory"] for run in runs}


def long_run(login) -> tuple[tuple[str, ...], dict, dict[int, int]]:
    """Begin a run of 200 steps; return its command, its state after five and its processes."""
    command = ("launch", "-m", *REAL, f"{STEPS}=200", *SHAPE, "paths.sweep=s", "seed=1")
    login(*command)
    (run,) = login.wait_until(at_step(login, 5))
    assert run["state"] == "running", login.logs()
    processes = processes_of(login.cwd / run["directory"])
    assert sorted(processes) == [0, 1, 2, 3]
    return command, run, processes


def wait_for_death(pids, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}/fd/1").exists() for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_promise_21_a_rank_that_is_killed_fails_the_run_and_is_named(login):
    _, _, processes = long_run(login)
    began = time.monotonic()
    os.kill(processes[2], signal.SIGKILL)
    (run,) = login.wait_until(login.ended)
    assert run["state"] == "failed"
    assert run["reason"].startswith("rank 2 on 127.0.1.2: killed by SIGKILL"), run["reason"]
    wait_for_death(processes.values())
    assert time.monotonic() - began < 30


def test_promise_21_no_rank_outlives_the_worker_that_holds_the_claim(login):
    _, _, processes = long_run(login)
    claim = json.loads((login.cwd / "multirun/s/.sweep/claims/0.1").read_text())
    os.kill(claim["pid"], signal.SIGKILL)
    wait_for_death(processes.values())
    (run,) = login.wait_until(login.ended)
    assert run["state"] in {"lost", "failed", "node_fail"}


def test_promise_21_a_cancelled_run_of_four_ranks_is_resumed_from_its_checkpoint(login):
    command, run, _ = long_run(login)
    subprocess.run(["scancel", run["job"]], env=login.environment(), check=True)
    (run,) = login.wait_until(login.ended)
    assert run["state"] == "preempted", (run["reason"], login.logs())
    assert run["reason"].startswith("SIGTERM at step ")
    stopped = records(login, run)[-1]["step"]
    login(*command)
    login.wait_until(at_step(login, stopped + 5))
    second = [record["step"] for record in records(login, run) if record["attempt"] == 2]
    assert second[0] == stopped + 1
    assert len({(record["attempt"], record["step"]) for record in records(login, run)}) == len(
        records(login, run)
    )


def test_promise_21_requeued_by_slurm_four_ranks_go_on_by_themselves(login):
    _, run, _ = long_run(login)
    before = records(login, run)[-1]["step"]
    env = login.environment()
    subprocess.run(["scontrol", "requeue", run["job"]], env=env, check=True)
    deadline = time.monotonic() + 90
    while records(login, run)[-1]["attempt"] == 1:
        assert time.monotonic() < deadline, (login.status("s"), login.logs())
        time.sleep(0.3)
    first = [r["step"] for r in records(login, run) if r["attempt"] == 1]
    second = [r["step"] for r in records(login, run) if r["attempt"] == 2]
    assert first[-1] >= before
    assert second[0] == first[-1] + 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            "training.training_params.batch_size=6",
            "batch_size = 6; must be a multiple of 4, the processes of the run: cluster.nodes x ",
        ),
        (
            "cluster.runs_per_node=2",
            "cluster.runs_per_node = 2; must be null: the 4 tasks of an element work on one run",
        ),
    ],
)
def test_what_four_ranks_cannot_do_is_refused_at_launch(login, wrong, says):
    more = ("training.training_params.tokens_processed=6144", wrong)
    done = login("launch", "-m", *SHAPE, "paths.sweep=s", "seed=1,2", *more, code=2)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (login.cwd / "multirun").exists()
