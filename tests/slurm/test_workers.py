"""Workers that drain a sweep and pack runs side by side, on a real SLURM."""

import json
import os
import re
import signal
import subprocess
from collections import Counter

LR = "optimizer.optimizer_params.lr"


def launch(toy, *more: str) -> tuple[str, ...]:
    return ("launch", "-m", *toy, "paths.sweep=s", "cluster=slurm", "cluster.timeout_min=10", *more)


def idle(runs: list[dict]) -> bool:
    return not {run["state"] for run in runs} & {"pending", "running"}


def attempts(login, run: dict) -> list[dict]:
    found: list[dict] = json.loads((login.cwd / run["directory"] / "run.json").read_text())[
        "attempts"
    ]
    return found


def most_at_once(login, runs: list[dict]) -> int:
    """Return how many runs were at work at the same moment."""
    spans = [json.loads((login.cwd / r["directory"] / "status.json").read_text()) for r in runs]
    return max(
        sum(s["started_at"] <= one["started_at"] < s["ended_at"] for s in spans) for one in spans
    )


def said(login, run: dict) -> str:
    return (login.cwd / run["directory"] / "train.log").read_text()


def test_promise_07_several_runs_share_each_gpu_and_every_run_sees_one(login, toy):
    login.env["TOY_STEP_S"] = "0.5"
    login(*launch(toy, "seed=1,2,3,4", "cluster.gpus_per_node=2", "cluster.runs_per_gpu=2"))
    runs = login.wait_until(idle)
    assert {run["state"] for run in runs} == {"completed"}
    assert len({run["job"] for run in runs}) == 1, "two GPUs of two slots take all four"
    assert most_at_once(login, runs) == 4
    gpus = Counter(re.search(r"GPUs (\S+) ", said(login, run))[1] for run in runs)
    assert sorted(gpus.values()) == [2, 2]
    assert not any("," in gpu for gpu in gpus)


def test_promise_07_runs_side_by_side_on_cpus_share_the_workers_threads(login, toy):
    login.env["TOY_STEP_S"] = "0.5"
    login(*launch(toy, "seed=1,2,3", "cluster.cpus_per_task=6", "cluster.runs_per_node=3"))
    runs = login.wait_until(idle)
    assert {run["state"] for run in runs} == {"completed"}
    assert most_at_once(login, runs) == 3
    assert [attempts(login, run)[0]["threads"] for run in runs] == [2, 2, 2]
    assert len({attempts(login, run)[0]["pid"] for run in runs}) == 3
    assert len({run["job"] for run in runs}) == 1


def test_promise_07_a_crash_a_kill_and_an_exit_leave_the_neighbours_alone(login, toy):
    login.env["TOY_STEP_S"] = "0.3"
    bad = {"901": "killed by SIGSEGV", "906": "killed by SIGKILL", "902": "exited with code 3"}
    login(*launch(toy, "seed=1,901,906,902,2", "cluster.runs_per_node=5"))
    runs = login.wait_until(idle)
    assert most_at_once(login, runs) == 5
    for run in runs:
        seed = run["name"].split("-")[1]
        expected = "failed" if seed in bad else "completed"
        assert (run["state"], run["step"]) == (expected, 3)
        assert bad.get(seed, "") in (run["reason"] or "")


def test_a_drain_worker_takes_over_what_a_killed_one_left_and_only_when_it_is_gone(login, toy):
    login.env["TOY_STEP_S"] = "0.1"
    login(*launch(toy, "seed=1,2,3,4", "cluster.workers=2",
                  "training.training_params.max_steps=30"))  # fmt: skip
    runs = login.wait_until(lambda runs: any((run.get("step") or 0) > 2 for run in runs))
    victim = next(run for run in runs if (run.get("step") or 0) > 2)
    claim = login.cwd / f"multirun/s/.sweep/claims/{victim['index']}.1"
    os.kill(json.loads(claim.read_text())["pid"], signal.SIGKILL)
    runs = login.wait_until(idle)
    assert {run["state"] for run in runs} == {"completed"}
    made = {run["index"]: [a["attempt"] for a in attempts(login, run)] for run in runs}
    assert made == {i: [1, 2] if i == victim["index"] else [1] for i in range(4)}


def test_a_stopped_drain_worker_goes_on_with_its_own_run_and_the_rest(login, toy):
    login.env["TOY_STEP_S"] = "0.1"
    login(*launch(toy, "seed=1,2,3", "cluster.workers=1",
                  "training.training_params.max_steps=20"))  # fmt: skip
    (first, *_) = login.wait_until(lambda runs: (runs[0].get("step") or 0) > 2)
    signalled = ["scancel", "--signal=USR2", first["job"]]
    subprocess.run(signalled, env=login.environment(), check=True)
    runs = login.wait_until(lambda runs: {run["state"] for run in runs} == {"pending"})
    runs = login.wait_until(lambda runs: {run["state"] for run in runs} == {"completed"})
    assert [[a["attempt"] for a in attempts(login, run)] for run in runs] == [[1, 2], [1], [1]]
    assert len({run["job"] for run in runs}) == 1


def test_promise_20_runs_fail_independently_and_max_failures_stops_beginning_more(login, toy):
    seeds = "seed=901,902,1,2,3,4"
    login(*launch(toy, seeds, "cluster.workers=1", "cluster.max_failures=2"))
    runs = login.wait_until(idle)
    assert [run["state"] for run in runs] == ["failed", "failed", *["planned"] * 4]
    assert {run["reason"] for run in runs[2:]} == {
        "not started: 2 runs failed (cluster.max_failures = 2)"
    }
    login(*launch(toy, "seed=1,2,3,4", "cluster.workers=1"))
    runs = login.wait_until(idle)
    assert [run["state"] for run in runs] == ["failed", "failed", *["completed"] * 4]


def test_promise_20_failures_count_for_all_arrays_of_a_launch_and_not_for_the_next(login, toy):
    """Element by element: those that begin after the failure say why they do nothing."""
    more = ("cluster.fail_fast=true", "cluster.array_parallelism=1")
    login(*launch(toy, "seed=901,1,2", *more))
    runs = login.wait_until(idle)
    assert [run["state"] for run in runs] == ["failed", "planned", "planned"]
    assert runs[1]["reason"] == "not started: 1 run failed (cluster.max_failures = 1)"
    login(*launch(toy, "seed=1,2", *more))
    assert [run["state"] for run in login.wait_until(idle)] == [
        "failed",
        "completed",
        "completed",
    ]


def test_elements_are_as_many_as_the_slots_ask_for(login, toy):
    done = login(*launch(toy, "seed=1,2,3,4,5,6,7", "cluster.runs_per_node=3", "dry_run=true"))
    assert "#SBATCH --array=0-2%3" in done.stdout
    assert "#SBATCH --requeue" in done.stdout
