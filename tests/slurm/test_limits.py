"""What the cluster takes at once: index-capped arrays, submit limits, groups of resources."""

import json
import re

import pytest

HOLD = "+cluster.additional_parameters.begin=now+1hour"


@pytest.fixture
def login(shell, slurm_limited):
    shell.env.update(slurm_limited.env)
    yield shell
    slurm_limited.run("scancel", "--me", check=False)
    slurm_limited.wait_idle()


def launch(toy, *more: str) -> tuple[str, ...]:
    settings = ("paths.sweep=s", "cluster=slurm", "cluster.timeout_min=10")
    return ("launch", "-m", *toy, *settings, *more)


def seeds(count: int) -> str:
    return "seed=" + ",".join(str(seed) for seed in range(1, count + 1))


@pytest.fixture
def queued(slurm_limited):
    """Return a function: how many elements each queued array has."""

    def count() -> list[int]:
        jobs = slurm_limited.run("squeue", "-h", "-r", "--me", "-o", "%F").stdout.split()
        return sorted(jobs.count(job) for job in set(jobs))

    return count


def test_promise_06_a_sweep_beyond_the_largest_array_and_the_submit_limit_is_cut_by_both(
    login, toy, queued
):
    done = login(*launch(toy, seeds(12), HOLD), code=3)
    assert re.fullmatch(
        r"error: MaxSubmitJobs = 7 of account research: 7 of 12 runs were submitted as job "
        r"\d+, \d+; launch again when some have ended to submit the other 5",
        done.stderr.splitlines()[-1],
    )
    assert queued() == [2, 5]
    again = login(*launch(toy, seeds(12), HOLD), code=3)
    assert "of account research: 0 of 5 runs were submitted; launch again " in again.stderr


def test_launching_again_when_some_have_ended_submits_the_rest(login, toy, slurm_limited):
    login(*launch(toy, seeds(9)), code=3)
    slurm_limited.wait_idle()
    done = login(*launch(toy, seeds(9)))
    assert "submitted 2 runs as job " in done.stderr
    slurm_limited.wait_idle()
    assert {run["state"] for run in login.status("s")} == {"completed"}


def test_promise_06_draining_feeds_as_many_workers_as_may_be_submitted(login, toy, queued):
    done = login(*launch(toy, seeds(12), "cluster.workers=4", "cluster.qos=short", HOLD))
    assert "fewer workers than asked for: MaxSubmitJobsPerUser = 3 of QOS short" in done.stderr
    assert queued() == [3]
    more = ("cluster.workers=4", "cluster.account=shared", HOLD, "paths.sweep=t")
    login(*launch(toy, seeds(12), *more))
    assert queued() == [3, 4]
    done = login(*launch(toy, seeds(2), "cluster.account=shared", HOLD, "paths.sweep=u"), code=3)
    assert "GrpSubmitJobs = 4 of account shared: 0 of 2 runs were submitted; " in done.stderr


def test_promise_12_a_dry_run_shows_the_scripts_that_are_submitted_and_counts_what_has_no_room(
    login, toy
):
    """Golden: the scripts shown are those that sbatch gets, but for the submission's id."""
    command = launch(toy, seeds(9), HOLD, "cluster.gpus_per_node=2")
    shown = json.loads(login(*command, "dry_run=true", "--json").stdout)
    assert list(login.cwd.iterdir()) == []
    text = login(*command, "dry_run=true").stdout
    assert shown["totals"] == {
        "runs": 9,
        "to_submit": 7,
        "waiting_for_room": 2,
        "limits": ["MaxSubmitJobs = 7 of account research"],
        "arrays": 2,
        "elements": 7,
        "gpu_hours": pytest.approx(7 * 2 * 10 / 60),
        "cpu_hours": 0.0,
    }
    assert [run["submit"] for run in shown["runs"]] == [True] * 7 + [False] * 2
    assert "2 runs would wait for another launch: MaxSubmitJobs = 7 of account research" in text
    assert list(login.cwd.iterdir()) == []
    login(*command, code=3)
    sent = {}
    for script in login.cwd.glob("multirun/s/.sweep/submissions/*/*_submission.sh"):
        if not script.is_symlink():
            sent[script.read_text().replace(script.parent.name, "ID")] = script
    told = {array["script"].replace(array["submission"], "ID") for array in shown["arrays"]}
    assert set(sent) == told
    ids = re.findall(r"--job-name=s\.([0-9a-f]{8})", text)
    assert len(ids) == 2
    for one in ids:
        text = text.replace(one, "ID")
    assert all(script in text for script in sent)


def test_promise_17_runs_with_other_resources_are_arrays_of_their_own_in_one_sweep(
    login, toy, slurm_limited
):
    (login.cwd / "d" / "sweep").mkdir(parents=True)
    (login.cwd / "d" / "sweep" / "mixed.yaml").write_text(
        """# @package _global_
hydra: {mode: MULTIRUN}
sweep:
  blocks:
    - grid: {seed: [1, 2]}
    - grid: {seed: [3]}
      cluster: {timeout_min: 20, cpus_per_task: 2, array_parallelism: 1}
"""
    )
    command = ("launch", "--config-dir", "d", "sweep=mixed", *toy, "cluster=slurm")
    shown = login(*command, HOLD, "dry_run=true")
    rows = [line.split() for line in shown.stdout.splitlines()[:4]]
    assert {"timeout_min", "cpus_per_task"} <= set(rows[0])
    login(*command, HOLD)
    asked = slurm_limited.run("squeue", "-h", "--me", "-r", "-o", "%l %c %F").stdout.splitlines()
    assert sorted(line.rsplit(" ", 1)[0] for line in asked) == ["1:00:00 1", "1:00:00 1", "20:00 2"]
    assert len({line.rsplit(" ", 1)[1] for line in asked}) == 2
    names = {run["name"] for run in login.status("mixed")}
    assert not any("timeout" in name or "cpus" in name for name in names)
