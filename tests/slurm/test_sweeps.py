"""Sweeps on a real SLURM: submitted at once, followed to the end, launched again."""

import json
import os
import re
import signal
import subprocess
import time

LR = "optimizer.optimizer_params.lr"


def launch(toy, *more: str) -> tuple[str, ...]:
    return ("launch", "-m", *toy, "paths.sweep=s", "cluster=slurm", "cluster.timeout_min=10", *more)


def submissions(login) -> list[dict]:
    files = sorted(login.cwd.glob("multirun/s/.sweep/submissions/*/submission.json"))
    return [json.loads(file.read_text()) for file in files]


def test_promise_01_launch_returns_while_the_jobs_still_wait_and_status_follows_them(login, toy):
    begun = time.monotonic()
    hold = "+cluster.additional_parameters.begin=now+1hour"
    done = login(*launch(toy, f"{LR}=0.1,0.2,0.3", hold))
    assert time.monotonic() - begun < 30
    assert "submitted 3 runs as job " in done.stderr
    assert [run["state"] for run in login.status("s")] == ["pending"] * 3
    job = re.search(r"as job (\d+)", done.stderr)[1]
    release = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
    subprocess.run(release, env=login.environment(), check=True)
    runs = login.wait_until(login.ended)
    assert [run["state"] for run in runs] == ["completed"] * 3
    assert all(run["job"].endswith(f"_{run['index']}") for run in runs)
    again = login(*launch(toy, f"{LR}=0.1,0.2,0.3"))
    assert "3 completed; none to submit" in again.stderr
    assert len(submissions(login)) == 1


def test_promise_03_waiting_runs_are_pending_and_are_not_submitted_again(login, toy):
    hold = "+cluster.additional_parameters.begin=now+1hour"
    login(*launch(toy, f"{LR}=0.1,0.2", hold))
    assert [run["state"] for run in login.status("s")] == ["pending", "pending"]
    assert "2 pending; none to submit" in login(*launch(toy, f"{LR}=0.1,0.2", hold)).stderr
    login("-m", "sweeps", "cancel", "s")
    runs = login.wait_until(lambda runs: "pending" not in {run["state"] for run in runs})
    assert {run["state"] for run in runs} == {"cancelled"}


def test_a_cancelled_element_checkpoints_and_only_it_is_launched_again(login, toy):
    login.env["TOY_STEP_S"] = "0.1"
    command = launch(toy, f"{LR}=0.1,0.2", "training.training_params.max_steps=40")
    login(*command)
    runs = login.wait_until(lambda runs: all((run.get("step") or 0) > 3 for run in runs))
    login.env["TOY_STEP_S"] = "0.01"
    subprocess.run(["scancel", runs[0]["job"]], env=login.environment(), check=True)
    runs = login.wait_until(lambda runs: runs[0]["state"] == "cancelled")
    assert "; stopped by SIGTERM after a checkpoint at step " in runs[0]["reason"]
    again = login(*command)
    assert "1 to submit, 1 of them again" in again.stderr
    assert {run["state"] for run in login.wait_until(login.ended)} == {"completed"}
    steps = [
        json.loads(line)["step"]
        for line in (login.cwd / runs[0]["directory"] / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 41))


def test_two_workers_drain_a_sweep_of_six(login, toy):
    login(*launch(toy, "seed=1,2,3,4,5,6", "cluster.workers=2"))
    runs = login.wait_until(login.ended)
    assert {run["state"] for run in runs} == {"completed"}
    assert submissions(login)[0]["share"]["elements"] == 2
    assert len({run["job"] for run in runs}) <= 2


def test_what_sbatch_says_reaches_the_user_with_exit_code_3(login, toy):
    done = login(*launch(toy, "seed=1,2", "cluster.partition=nope"), code=3)
    assert done.stderr.splitlines()[-1] == (
        "error: sbatch said: invalid partition specified: nope; "
        "Batch job submission failed: Invalid partition name specified; "
        "0 of 2 runs were submitted; launch again to submit the rest"
    )
    login(*launch(toy, "seed=1,2"))
    assert {run["state"] for run in login.wait_until(login.ended)} == {"completed"}


def test_promise_11_the_login_shells_slurm_variables_do_not_reach_the_jobs(login, toy):
    """All but SLURM_CONF: without it the job would not find its cluster."""
    login.env.update({"SLURM_CPU_BIND": "mask_cpu:0xabc", "SBATCH_PARTITION": "nope"})
    login(*launch(toy, "seed=1"))
    (run,) = login.wait_until(login.ended)
    assert run["state"] == "completed"
    seen = (login.cwd / run["directory"] / "train.log").read_text()
    assert f"SLURM_CONF={login.env['SLURM_CONF']}\n" in seen
    assert "SLURM_JOB_ID=" in seen
    assert "0xabc" not in seen
    assert "SBATCH_PARTITION" not in seen


def test_promise_05_an_edit_of_the_frozen_code_is_refused_on_the_node_in_words(login, toy):
    login(*launch(toy, "seed=1", "+cluster.additional_parameters.begin=now+3"))
    code = next(login.cwd.glob("multirun/s/.sweep/code/*"))
    with (code / "rundir" / "run.py").open("a") as file:
        file.write("# edited\n")
    (run,) = login.wait_until(lambda runs: runs[0]["state"] == "lost")
    assert "has changed since submission" in run["reason"]


def test_promise_05_an_edit_of_the_working_tree_while_jobs_wait_changes_nothing_in_them(login):
    task = login.cwd / "mine.py"
    task.write_text("def run(config, run):\n    run.log('train', 1, loss=1.0)\n")
    own = ("task=mine.run", "check=null", "seed=1")
    settings = ("paths.sweep=s", "cluster=slurm", "+cluster.additional_parameters.begin=now+4")
    login("launch", "-m", *own, *settings)
    task.write_text("raise SystemExit('edited while the job waited')\n")
    (run,) = login.wait_until(login.ended)
    assert run["state"] == "completed", run
    lines = (login.cwd / run["directory"] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [1.0]


def test_runs_submitted_again_avoid_the_nodes_that_are_excluded(login, toy, slurm):
    login(*launch(toy, "seed=1,903", "cluster.exclude=n1"))
    login.wait_until(login.ended)
    again = "from sweeps.launch import submission; from sweeps.planning.plan import Plan\n"
    again += "from pathlib import Path\n"
    again += "plan = Plan.read(Path('multirun/s'))\n"
    again += "raise SystemExit(submission.again(plan, [0, 1], exclude_nodes=['n2', 'n3']))"
    done = login("-c", again)
    assert "1 of 2 runs to submit again" in done.stderr
    first, second = sorted(submissions(login), key=lambda s: len(s["share"]["runs"]), reverse=True)
    assert [len(first["share"]["runs"]), second["share"]["runs"]] == [2, [[1, 2]]]
    script = next(login.cwd.glob(f"multirun/s/.sweep/submissions/{second['id']}/*_submission.sh"))
    assert "#SBATCH --exclude=n1,n2,n3\n" in script.read_text()
    claims = login.cwd / "multirun" / "s" / ".sweep" / "claims"
    login.wait_until(lambda runs: (claims / "1.2").exists() and login.ended(runs))


def test_too_little_time_for_the_signal_is_refused_before_anything_happens(login, toy):
    done = login(*launch(toy, "seed=1", "cluster.timeout_min=2"), code=2)
    assert done.stderr == (
        "error: cluster.timeout_min = 2; must be above 3: "
        "a minute more than cluster.signal_delay_s\n"
    )
    assert not (login.cwd / "multirun").exists()


def test_with_accounting_a_killed_run_has_slurms_own_words(shell, slurm_accounting, toy):
    shell.env.update(slurm_accounting.env)
    shell.env["TOY_STEP_S"] = "0.1"
    shell(*launch(toy, "seed=1", "training.training_params.max_steps=1000"))
    runs = shell.wait_until(lambda runs: (runs[0].get("step") or 0) > 2)
    worker = json.loads((shell.cwd / "multirun/s/.sweep/claims/0.1").read_text())["pid"]
    os.kill(worker, signal.SIGKILL)
    runs = shell.wait_until(lambda runs: runs[0]["state"] == "failed")
    assert runs[0]["reason"].startswith("SLURM says FAILED (")
    slurm_accounting.wait_idle()


def test_the_quickstart_trains_on_slurm_and_is_collected_into_the_same_table(login):
    """A few steps of the real sweep, here and on SLURM: the same runs with the same losses."""
    short = [
        "sweep=quickstart",
        f"{LR}=0.003,0.01",
        "training.training_params.max_steps=4",
        "training.training_params.val_tokens_processed=8192",
    ]
    login("launch", *short, "paths.multirun=here", "cluster.cpus_per_task=1")
    login("launch", *short, "cluster=slurm", "paths.sweep=s", "cluster.cpus_per_task=1")
    assert {run["state"] for run in login.wait_until(login.ended, 180)} == {"completed"}
    tables = []
    for root in ("here", "multirun"):
        login("-m", "analysis", "collect", root, "--store", f"store-{root}")
        done = login("-m", "analysis", "table", "--store", f"store-{root}", "--all", "--json")
        rows = json.loads(done.stdout)
        tables.append(sorted((row["signature"], row["final.val.loss"]) for row in rows))
    assert tables[0] == tables[1]
    assert len(tables[0]) == 4
