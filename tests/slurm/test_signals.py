"""What happens to a run when SLURM, its user or its machine interrupts it: on a real SLURM."""

import json
import os
import re
import signal
import subprocess
import time

import pytest

from rundir.run import FENCE_INTERVAL_S

LR = "optimizer.optimizer_params.lr"
LONG = ("cluster=slurm", "cluster.timeout_min=10", "training.training_params.max_steps=100")


@pytest.fixture
def login(login):
    """Be on the login node, with runs of a tenth of a second a step."""
    login.env["TOY_STEP_S"] = "0.1"
    return login


def launch(toy, *more: str) -> tuple[str, ...]:
    return ("launch", "-m", *toy, "paths.sweep=s", *LONG, *more)


def at_step(number: int):
    return lambda runs: all(
        run["state"] == "running" and (run.get("step") or 0) >= number for run in runs
    )


def not_requeued(runs: list[dict]) -> bool:
    """Say whether the worker has ended the run and told why it does not go on."""
    return runs[0]["state"] == "preempted" and "; not requeued: " in runs[0]["reason"]


def records(login, run: dict) -> list[dict]:
    text = (login.cwd / run["directory"] / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def attempts(login, run: dict) -> list[int]:
    record = json.loads((login.cwd / run["directory"] / "run.json").read_text())
    return [attempt["attempt"] for attempt in record["attempts"]]


def scancel(login, *words: str) -> None:
    subprocess.run(["scancel", *words], env=login.environment(), check=True)


def each_step_once(login, run: dict, steps: int = 100) -> None:
    assert [r["step"] for r in records(login, run)] == list(range(1, steps + 1))


def test_a_signalled_run_checkpoints_goes_back_into_the_queue_and_resumes(login, toy):
    """What is in the queue again is pending, and launching again submits nothing for it."""
    command = launch(toy, f"{LR}=0.1,0.2")
    login(*command)
    first, _ = login.wait_until(at_step(3))
    scancel(login, "--signal=USR2", first["job"])
    first, _ = login.wait_until(lambda runs: runs[0]["state"] == "pending")
    assert "SIGUSR2 after a checkpoint at step " in first["reason"]
    assert "none to submit" in login(*command).stderr
    runs = login.wait_until(login.completed)
    assert [attempts(login, run) for run in runs] == [[1, 2], [1]]
    assert runs[0]["job"] == first["job"], "the element itself went on"
    for run in runs:
        each_step_once(login, run)


def test_scancel_ends_a_run_with_a_checkpoint_and_without_a_requeue(login, toy):
    login(*launch(toy, f"{LR}=0.1"))
    (run,) = login.wait_until(at_step(3))
    scancel(login, run["job"])
    (run,) = login.wait_until(lambda runs: runs[0]["state"] == "cancelled")
    told = r"SLURM says CANCELLED .*; stopped by SIGTERM after a checkpoint at step \d+"
    assert re.fullmatch(told, run["reason"])
    own = json.loads((login.cwd / run["directory"] / "status.json").read_text())
    assert "; not requeued: SLURM ends the job itself" in own["reason"]
    assert attempts(login, run) == [1]


SLOW_START = """
import pathlib, time

def preload():
    pathlib.Path("starting").touch()
    time.sleep(3)

def run(config, run):
    pass
"""


def test_a_drain_that_scancel_ends_before_it_has_begun_a_run_is_cancelled(login):
    (login.cwd / "slow_start.py").write_text(SLOW_START)
    task = ("task=slow_start.run", "check=null")
    login(*launch(task, "seed=1,2,3", "cluster.workers=1"))
    job, deadline = login.status("s")[0]["job"], time.monotonic() + 60
    while not (login.cwd / "starting").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    scancel(login, job.partition("_")[0])
    runs = login.wait_until(login.ended)
    told = r"SLURM says CANCELLED.* on n\d; not started: the worker was stopped by SIGTERM"
    assert all(run["state"] == "cancelled" for run in runs)
    assert all(re.fullmatch(told, run["reason"]) for run in runs), runs[0]["reason"]


def test_cancel_wins_over_a_requeue_under_way(login, toy):
    login(*launch(toy, f"{LR}=0.1"))
    (run,) = login.wait_until(at_step(3))
    login("-m", "sweeps", "cancel", "s")
    login.wait_until(lambda runs: runs[0]["state"] == "cancelled")
    time.sleep(1)
    assert login.status("s")[0]["state"] == "cancelled"
    own = json.loads((login.cwd / run["directory"] / "status.json").read_text())
    assert "; not requeued: " in own["reason"]
    squeue = subprocess.run(
        ["squeue", "--noheader"],
        env=login.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run["job"].partition("_")[0] not in squeue.stdout


def test_scontrol_requeue_by_the_user_resumes_the_element_from_its_checkpoint(login, toy):
    login(*launch(toy, f"{LR}=0.1,0.2", "cluster.max_requeues=0", "cluster.requeue_on=[]",
                  "+cluster.additional_parameters.requeue=true"))  # fmt: skip
    runs = login.wait_until(at_step(3))
    follower = login.start("-m", "sweeps", "logs", "s", "1", "--follow")
    time.sleep(2)
    subprocess.run(["scontrol", "requeue", runs[1]["job"]], env=login.environment(), check=True)
    runs = login.wait_until(lambda runs: runs[1]["state"] == "pending")
    assert "; not requeued" not in runs[1]["reason"], "it goes on"
    runs = login.wait_until(login.completed)
    assert [attempts(login, run) for run in runs] == [[1], [1, 2]]
    for run in runs:
        each_step_once(login, run)
    followed, _ = follower.communicate(timeout=60)
    assert followed == (login.cwd / runs[1]["directory"] / "train.log").read_text()


def test_the_rules_bound_how_often_a_run_is_requeued_and_say_so(login, toy):
    command = launch(toy, f"{LR}=0.1", "cluster.max_requeues=1")
    command = (*command, "training.training_params.max_steps=1000")
    login(*command)
    for attempt in (1, 2):
        login.wait_until(lambda runs: at_step(1)(runs) and attempts(login, runs[0])[-1] == attempt)  # noqa: B023
        scancel(login, "--signal=USR1", login.status("s")[0]["job"])
    (run,) = login.wait_until(not_requeued)
    assert run["reason"].endswith("; not requeued: begun again 1 time (cluster.max_requeues = 1)")
    login.env["TOY_STEP_S"] = "0"
    login(*command)
    (run,) = login.wait_until(login.completed)
    assert attempts(login, run) == [1, 2, 3]
    each_step_once(login, run, 1000)


def test_promise_15_where_the_site_does_not_requeue_launching_again_resumes(login, toy):
    hold = "+cluster.additional_parameters.no-requeue=true"
    login(*launch(toy, f"{LR}=0.1", hold))
    (run,) = login.wait_until(at_step(3))
    scancel(login, "--signal=USR2", run["job"])
    (run,) = login.wait_until(not_requeued)
    assert run["state"] == "preempted"
    assert "; not requeued: scontrol said: " in run["reason"]
    assert "Requested operation is presently disabled" in run["reason"]
    login(*launch(toy, f"{LR}=0.1", hold))
    (run,) = login.wait_until(login.completed)
    assert attempts(login, run) == [1, 2]
    each_step_once(login, run)


def test_the_time_limit_is_a_signal_too_and_the_element_goes_on_after_it(login, toy):
    """--time=1 --signal=USR2@40: SLURM warns a run after a few seconds."""
    login(*launch(toy, f"{LR}=0.1",
                  "+cluster.additional_parameters={time: 1, signal: USR2@40}",
                  "training.training_params.max_steps=400"))  # fmt: skip
    (run,) = login.wait_until(lambda runs: runs[0]["state"] == "pending" and runs[0].get("step"))
    assert "SIGUSR2 after a checkpoint at step " in run["reason"]
    (run,) = login.wait_until(login.completed)
    assert attempts(login, run)[:2] == [1, 2]
    each_step_once(login, run, 400)


def test_a_trained_gpt_resumes_bit_exactly_after_a_requeue(login):
    """The real trainer: the curve of an interrupted run equals that of one left alone."""
    nano = ("launch", "-m", "model=nano", "seed=1", "paths.sweep=s",
            "+logging.logging_params.log_step=1", "training.training_params.max_steps=120",
            "training.training_params.tokens_processed=1024",
            "training.training_params.val_tokens_processed=8192",
            "training.training_params.batch_size=16",
            "training.training_params.context_length=64")  # fmt: skip
    login(*nano, "cluster=slurm", "cluster.cpus_per_task=1")
    (run,) = login.wait_until(at_step(10), 240)
    scancel(login, "--signal=USR2", run["job"])
    (run,) = login.wait_until(login.completed, 240)
    assert attempts(login, run) == [1, 2]
    login(*nano, "paths.multirun=undisturbed")
    (other,) = (login.cwd / "undisturbed").rglob("metrics.jsonl")
    alone = [json.loads(line) for line in other.read_text().splitlines()]
    assert curve(records(login, run)) == curve(alone)
    assert len(curve(alone)) > 120


def curve(found: list[dict]) -> list[tuple]:
    """Return what was measured at each step, without times."""
    return [(r["stream"], r["step"], r["loss"], r.get("grad_norm"), r.get("lr")) for r in found]


@pytest.fixture
def breakable(shell, slurm_to_break):
    """Be on the login node of a cluster of one's own."""
    shell.env.update(slurm_to_break.env)
    shell.env["TOY_STEP_S"] = "0.1"
    return shell


def test_a_run_whose_node_fails_goes_on_on_another_one(breakable, slurm_to_break, toy):
    login = breakable
    login(*launch(toy, f"{LR}=0.1"))
    (run,) = login.wait_until(at_step(3))
    slurm_to_break.kill_node("n1")
    slurm_to_break.run("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test")
    (run,) = login.wait_until(login.completed)
    assert attempts(login, run) == [1, 2]
    assert {r["step"] for r in records(login, run)} == set(range(1, 101))


@pytest.mark.skipif(os.getuid() != 0, reason="a pid namespace needs root")
def test_a_run_whose_node_lives_on_although_slurm_has_given_it_up_goes_on_once(
    breakable, slurm_to_break, toy
):
    """Only its slurmd dies: the first attempt ends soon after the second one is claimed."""
    login, lab = breakable, slurm_to_break
    with lab.apart("n1") as end_daemon:
        lab.run("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")
        login(*launch(toy, f"{LR}=0.1", "training.training_params.max_steps=250"))
        login.wait_until(at_step(3))
        lab.run("scontrol", "update", "NodeName=n2", "State=RESUME")
        end_daemon()
        lab.run("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=test")
        (run,) = login.wait_until(login.completed, 180)
        again = login.cwd / "multirun/s/.sweep/claims/0.2"
        first = [r["t"] for r in records(login, run) if r["attempt"] == 1]
        assert len(first) < 250
        assert first[-1] > again.stat().st_mtime - 1, "it was alive when SLURM began it again"
        assert first[-1] < again.stat().st_mtime + FENCE_INTERVAL_S + 1
        own = json.loads((login.cwd / run["directory"] / "status.json").read_text())
        assert (own["state"], own["attempt"]) == ("completed", 2)


def test_a_restart_of_the_controller_leaves_runs_alone(breakable, slurm_to_break, toy):
    """kill -9 of slurmctld: while it is away status says so and tells what the runs record."""
    login, lab = breakable, slurm_to_break
    command = launch(toy, f"{LR}=0.1,0.2")
    login(*command)
    login.wait_until(at_step(3))
    time.sleep(5)  # a controller that is killed within seconds of a job's start may forget it
    pid = int((lab.path / "run" / "slurmctld.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    assert {run["state"] for run in login.status("s")} <= {"running", "completed"}
    lab.run("slurmctld")
    runs = login.wait_until(login.completed)
    assert [attempts(login, run) for run in runs] == [[1], [1]]
    assert "none to submit" in login(*command).stderr
    for run in runs:
        each_step_once(login, run)


def test_an_element_that_slurm_holds_is_shown_as_held_and_goes_on_when_released(login, toy):
    """What `launch failed requeued held` looks like: requeued by SLURM, and not started again."""
    command = launch(toy, f"{LR}=0.1")
    login(*command)
    (run,) = login.wait_until(at_step(3))
    subprocess.run(["scontrol", "requeuehold", run["job"]], env=login.environment(), check=True)
    (run,) = login.wait_until(lambda runs: runs[0]["state"] == "pending")
    (run,) = login.wait_until(lambda runs: "held" in runs[0]["reason"].lower())
    assert "scontrol release" in run["reason"]
    assert "none to submit" in login(*command).stderr
    subprocess.run(["scontrol", "release", run["job"]], env=login.environment(), check=True)
    (run,) = login.wait_until(login.completed)
    assert attempts(login, run) == [1, 2]
    each_step_once(login, run)


def test_promise_15_a_preempted_run_goes_on_whether_the_site_requeues_or_cancels(
    shell, slurm_preempting, toy
):
    login, lab = shell, slurm_preempting
    login.env.update({**lab.env, "TOY_STEP_S": "0.1"})
    login(*launch(toy, f"{LR}=0.1", "cluster.partition=low"))
    login.wait_until(at_step(3))
    lab.run("sbatch", "-p", "high", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
    (run,) = login.wait_until(lambda runs: runs[0]["state"] == "pending")
    assert "SIGTERM after a checkpoint at step " in run["reason"]
    (run,) = login.wait_until(login.completed)
    assert attempts(login, run) == [1, 2]
    each_step_once(login, run)
