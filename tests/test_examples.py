"""Tasks that are not ours: swept, followed, collected, repeated and resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from sweeps.records.pythonpath import name_of

ROOT = Path(__file__).resolve().parent.parent

REGRESSION = (
    "launch",
    "--config-dir",
    str(ROOT / "examples" / "conf"),
    "--config-name",
    "regression",
)
FIT = ("launch", "--config-dir", "conf", "--config-name", "fit")


@pytest.fixture
def ten_lines(shell):
    """The task and the config that docs/tasks.md shows, in the directory of the launch."""
    text = (ROOT / "docs" / "tasks.md").read_text()
    (shell.cwd / "conf").mkdir()
    (shell.cwd / "fit.py").write_text(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1])
    (shell.cwd / "conf" / "fit.yaml").write_text(
        re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]
    )
    return shell


def table(shell, *more):
    shell("-m", "analysis", "collect")
    done = shell("-m", "analysis", "table", *more, "--by", "final.train.loss", "--all", "--json")
    return json.loads(done.stdout)


def test_the_ten_lines_of_the_docs_are_swept_followed_collected_and_repeated(ten_lines):
    shell = ten_lines
    task = (shell.cwd / "fit.py").read_text()
    assert len(task[task.index("def ") :].splitlines()) == 9
    done = shell(*FIT, "-m", "lr=0.01,0.1", "seed=1,2", "paths.sweep=fit")
    assert "sweep fit: 4 runs: 4 completed" in done.stderr
    assert [(run["state"], run["step"]) for run in shell.status("fit")] == [("completed", 50)] * 4
    assert [row["config.lr"] for row in table(shell, "fit")] == [0.1, 0.1, 0.01, 0.01]
    run = next((shell.cwd / "multirun" / "fit").glob("lr-0.1-seed-1-*"))
    again = shell("-m", "sweeps", "rerun", str(run), "--verify")
    assert again.stdout == "equal to the bit: 50 values\n"
    assert "code: as it was\n" in again.stderr


def test_promise_05_a_task_beside_the_launch_is_frozen_with_the_project(ten_lines):
    shell = ten_lines
    shell(*FIT, "-m", "seed=1", "paths.sweep=fit")
    (frozen,) = (shell.cwd / "multirun/fit/.sweep/code").iterdir()
    place = f".path/{name_of(ten_lines.cwd)}"
    copied = frozen / place / "fit.py"
    assert copied.read_text() == (shell.cwd / "fit.py").read_text()
    (shell.cwd / "fit.py").write_text(copied.read_text().replace("np.zeros(8)", "np.ones(8)"))
    run = next((shell.cwd / "multirun/fit").glob("*/run.json")).parent
    again = shell("-m", "sweeps", "rerun", str(run), "--verify", code=1)
    assert f"  1 file since {frozen.name}: {place}/fit.py (changed)\n" in again.stderr
    assert again.stdout.startswith("different at train step 1: loss ")


def test_the_sweep_definition_of_the_docs_is_launched_by_its_name(ten_lines):
    text = (ROOT / "docs" / "tasks.md").read_text()
    (ten_lines.cwd / "conf" / "sweep").mkdir()
    definition = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[1]
    (ten_lines.cwd / "conf" / "sweep" / "rates.yaml").write_text(definition)
    done = ten_lines(*FIT, "sweep=rates", "dry_run=true")
    assert "4 runs to submit" in done.stdout


def test_the_help_is_of_the_users_task_and_not_of_ours(ten_lines):
    said = ten_lines(*FIT, "--help").stdout
    assert said.startswith("Run fit.fit, or sweep it: ")
    assert "lr: 0.1\n" in said
    assert "GPT" not in said
    assert "optimizer" not in said


def test_its_config_holds_the_users_keys_and_the_engines_alone(ten_lines):
    done = ten_lines(*FIT, "--cfg", "job")
    top = {line.partition(":")[0] for line in done.stdout.splitlines() if line[:1].isalpha()}
    engine = {"paths", "cluster", "task", "check", "dry_run"}
    assert top == {"lr", "steps", "seed"} | engine
    refused = ten_lines(*FIT, "lrr=1", code=2)
    assert refused.stderr.startswith("error: unknown key lrr in the config; must be one of: ")
    assert refused.stderr.endswith("; did you mean lr?\n")


def test_the_example_is_swept_by_its_own_definition_and_diverges_where_it_must(shell):
    shell(*REGRESSION, "sweep=regression_lr")
    rows = {
        (row["config.momentum"], row["config.lr"]): row for row in table(shell, "regression_lr")
    }
    assert {key for key, row in rows.items() if row["state"] == "diverged"} == {(0, 3), (0.9, 3)}
    best = min((r for r in rows.values() if r["state"] == "completed"), key=loss)
    assert (best["config.momentum"], best["config.lr"]) == (0, 1)


def loss(row):
    return row["final.train.loss"]


def test_a_mistake_in_its_config_is_told_by_its_own_check(shell):
    done = shell(*REGRESSION, "-m", "lr=-1,0.1", code=2)
    assert done.stderr == "error: run (lr=-1): lr = -1; must be above 0\n"


def test_killed_it_resumes_from_its_checkpoint_to_the_same_bits(shell):
    command = (*REGRESSION, "step_s=0.05", "steps=40")
    first = shell.start(*command)
    deadline = time.monotonic() + 60
    while not shell.find("last.npz"):
        assert time.monotonic() < deadline, first.poll()
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert "resuming (lost: " in shell(*command).stderr
    run = next(shell.cwd.rglob("run.json")).parent
    attempts = json.loads((run / "run.json").read_text())["attempts"]
    assert [attempt["attempt"] for attempt in attempts] == [1, 2]
    again = shell("-m", "sweeps", "rerun", str(run), "--verify")
    assert again.stdout == "equal to the bit: 41 values\n"
