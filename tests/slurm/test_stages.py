"""A second stage on a real SLURM: launched by a job when the first one is over."""

import json
import re
import time

import pytest

HEAD = "# @package _global_\nhydra: {mode: MULTIRUN}\n"
LR = "optimizer.optimizer_params.lr"


@pytest.fixture
def login(login):
    """Be on the login node, with a first stage `one` and a second stage `two` of one's own."""
    folder = login.cwd / "mine" / "sweep"
    folder.mkdir(parents=True)
    (folder / "one.yaml").write_text(HEAD + f"sweep: {{grid: {{{LR}: [0.3, 0.1, 0.2]}}}}\n")
    (folder / "two.yaml").write_text(
        HEAD + "sweep:\n  after: {sweep: one, metric: train/loss}\n"
        f'  grid: {{{LR}: ["${{best:{LR}}}"], seed: [1, 2]}}\n'
    )
    return login


def launch(toy, sweep: str, *more: str) -> tuple[str, ...]:
    cluster = ("cluster=slurm", "cluster.timeout_min=10")
    return ("launch", "--config-dir", "mine", *toy, f"sweep={sweep}", *cluster, *more)


def wait_for_completed(login, sweep: str, count: int) -> list[dict]:
    end = time.monotonic() + 120
    while True:
        plan = login.cwd / "multirun" / sweep / ".sweep" / "plan.json"
        found = login.status(sweep) if plan.exists() else []
        if [run["state"] for run in found] == ["completed"] * count:
            return found
        assert time.monotonic() < end, found
        time.sleep(0.5)


def test_promise_05_a_second_stage_starts_by_itself_with_the_code_it_was_launched_with(
    login, toy, slurm
):
    first = login(*launch(toy, "one", "+cluster.additional_parameters.hold=true")).stderr
    held = re.search(r"as job (\d+)", first)[1]
    (login.cwd / "own.py").write_text("from toy import run\n")
    two = launch(toy, "two", "task=own.run", "cluster.mem_gb=1")
    dry = login(*two, "dry_run=true")
    assert f"\n--- slurm: the job that launches it after job {held} ---\n" in dry.stdout
    assert f"#SBATCH --dependency=afterany:{held}\n" in dry.stdout
    assert "2 runs to submit when one is over; their directories, scripts and hours depend on" in (
        dry.stdout
    )
    assert f"lr=best({LR}), seed=1  (the cluster's default of CPUs, no GPU, at most 10 min)" in (
        dry.stdout
    )
    assert not (login.cwd / "multirun" / "two").exists()
    done = login(*two)
    assert "sweep two waits for one (job " in done.stderr
    command = next(line for line in dry.stdout.splitlines() if "launch.py" in line)
    (script,) = (login.cwd / "multirun" / "two").rglob("*_submission.sh")
    assert command in script.read_text().splitlines()
    assert not (login.cwd / "multirun" / "two" / ".sweep" / "plan.json").exists()
    again = login(*two)
    assert "sweep two still waits for one (job " in again.stderr
    waiting = slurm.run("squeue", "--noheader", "--name=two.successor", "--format=%i %E").stdout
    assert len(waiting.splitlines()) == 1
    assert f"afterany:{held}" in waiting
    told = f"waits for one (job {held}); job {waiting.split()[0]} launches it"
    assert login("-m", "sweeps", "status", "two").stdout == f"sweep two: {told}\n"
    (login.cwd / "own.py").write_text("raise SystemExit('edited while the job waited')\n")
    (login.cwd / "mine" / "sweep" / "two.yaml").write_text("edited: while the job waited")
    slurm.run("scontrol", "release", held)
    wait_for_completed(login, "one", 3)
    runs = wait_for_completed(login, "two", 2)
    for run in runs:
        record = json.loads((login.cwd / run["directory"] / "run.json").read_text())
        assert f"{LR}=0.1" in record["overrides"], "the concrete value, not where it came from"


def test_a_job_that_waits_for_an_earlier_job_of_the_first_stage_is_replaced(login, toy, slurm):
    hold = "+cluster.additional_parameters.begin=now+1hour"
    login(*launch(toy, "one", hold))
    login(*launch(toy, "two"))
    (before,) = slurm.run(
        "squeue", "--noheader", "--name=two.successor", "--format=%A"
    ).stdout.split()
    slurm.run("scontrol", "update", f"JobId={before}", "Dependency=")
    slurm.run("scontrol", "hold", before)
    assert "sweep two waits for one (job " in login(*launch(toy, "two")).stderr
    (after,) = slurm.run(
        "squeue", "--noheader", "--name=two.successor", "--format=%A"
    ).stdout.split()
    assert after != before


def test_a_second_stage_that_could_not_be_planned_is_refused_while_the_first_one_runs(login, toy):
    login(*launch(toy, "one", "+cluster.additional_parameters.begin=now+1hour"))
    done = login(*launch(toy, "two", "+sweep.zip={seed: 5}"), code=2)
    assert done.stderr == "error: sweep.zip.seed = 5; must be a non-empty list of values\n"
    assert not (login.cwd / "multirun" / "two").exists()


def test_a_second_stage_whose_first_one_failed_says_so_in_its_status(login, toy, slurm):
    hold = "+cluster.additional_parameters.hold=true"
    first = login(*launch(toy, "one", hold, "seed=903")).stderr
    login(*launch(toy, "two"))
    slurm.run("scontrol", "release", re.search(r"as job (\d+)", first)[1])
    end = time.monotonic() + 120
    said = ""
    while "was not launched" not in said:
        assert time.monotonic() < end, said
        time.sleep(0.5)
        done = login("-m", "sweeps", "status", "two", code=None)
        said = done.stdout + done.stderr
    assert "sweep two comes after one, which ended badly (3 runs: 3 failed: " in said
    assert "python -m sweeps retry multirun/one" in said
