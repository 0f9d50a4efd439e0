"""A task of the user's own, and the repetition of a run, as jobs of a real SLURM."""

import json
import os
import subprocess

import pytest

SLURM = ("cluster=slurm", "cluster.timeout_min=10")
FIT = ("launch", "--config-dir", "conf", "--config-name", "fit")

TASK = """
def fit(config, run):
    for step in range(1, 6):
        run.log("train", step, loss=config["lr"] / step)
        run.progress(step, 5)
"""
CONFIG = "defaults: [engine, _self_, {sweep: null}]\ntask: fit.fit\nlr: 0.1\n"


@pytest.fixture
def login(login):
    """Be on the login node, in a directory with a task of one's own."""
    (login.cwd / "conf").mkdir()
    (login.cwd / "fit.py").write_text(TASK)
    (login.cwd / "conf" / "fit.yaml").write_text(CONFIG)
    return login


def test_promise_05_an_edit_of_the_users_task_changes_nothing_in_the_jobs_that_wait(login):
    hold = "+cluster.additional_parameters.begin=now+5"
    login(*FIT, "-m", "lr=0.1,0.2", "paths.sweep=s", *SLURM, hold)
    (login.cwd / "fit.py").write_text("raise RuntimeError('edited while the jobs wait')\n")
    login.wait_until(login.completed)


def test_promise_05_an_edit_of_what_the_task_imports_from_elsewhere_changes_nothing_either(
    login, tmp_path_factory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for module in ("real", "other"):
        (elsewhere / f"{module}.py").write_text("VALUE = 1.0\n")
    (login.cwd / "links").mkdir()
    os.symlink(elsewhere / "real.py", login.cwd / "links" / "linked.py")
    task = "def fit(config, run):\n    import linked, other\n"
    task += "    run.log('train', 1, loss=linked.VALUE + other.VALUE)\n"
    (login.cwd / "fit.py").write_text(task)
    env = login.environment()
    env["PYTHONPATH"] += f":{login.cwd / 'links'}:{elsewhere}"
    hold = "+cluster.additional_parameters.begin=now+5"
    words = login.command(*FIT, "-m", "lr=0.1", "paths.sweep=s", *SLURM, hold)
    subprocess.run(words, cwd=login.cwd, env=env, check=True, capture_output=True)
    for module in ("real", "other"):
        (elsewhere / f"{module}.py").write_text("VALUE = 20.0\n")
    login.wait_until(login.completed)
    metrics = next((login.cwd / "multirun" / "s").glob("*/metrics.jsonl"))
    assert json.loads(metrics.read_text())["loss"] == 2.0


def test_promise_04_a_run_is_repeated_on_the_cluster_and_compared_by_the_printed_command(login):
    login(*FIT, "-m", "lr=0.1", "paths.sweep=s", *SLURM)
    login.wait_until(login.completed)
    run = next((login.cwd / "multirun" / "s").glob("*/run.json")).parent
    done = login("-m", "sweeps", "rerun", str(run), "--cluster", "--verify")
    assert "code: as it was\n" in done.stderr
    printed = done.stderr.splitlines()[-1].split()
    assert printed[:5] == ["compare", "python", "-m", "sweeps", "compare"]
    login.wait_until(login.completed, sweep=printed[-1].split("/")[1])
    assert login(*printed[2:]).stdout == "equal to the bit: 5 values\n"
    again = json.loads((login.cwd / printed[-1] / "run.json").read_text())
    assert again["rerun_of"] == str(run)
