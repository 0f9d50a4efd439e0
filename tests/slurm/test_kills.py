"""A launcher killed at any step of a submission: launching again loses and repeats nothing."""

import json
import sys
import time
from pathlib import Path

import pytest

from rundir import State, read_status
from rundir.files import SWEEP_DIR, iter_metrics
from sweeps import ledger
from sweeps.plan import Plan

SCRIPT = Path(__file__).with_name("killed_launch.py")

SBATCH = """#!/bin/sh
case $DIE in
  instead) kill -9 "$LAUNCHER" ;;
  after) "$SBATCH" "$@"; kill -9 "$LAUNCHER" ;;
  meanwhile) kill -9 "$LAUNCHER"; until [ -e go ]; do sleep 0.1; done; exec "$SBATCH" "$@" ;;
esac
"""
"""Stands before sbatch: kills the launcher instead of it, after it, or before it gets through."""

SWEEP = ("paths.sweep=s", "cluster=slurm", "cluster.timeout_min=10", "seed=1,2,3")


@pytest.fixture
def launches(shell, slurm, toy, tmp_path):
    """Return a function that launches into directories, each killed at a step or not."""
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(SBATCH)
    wrapper.chmod(0o755)
    sbatch = slurm.run("which", "sbatch").stdout.strip()
    dying = {"SBATCH": sbatch, "PATH": f"{wrapper.parent}:{slurm.env['PATH']}"}

    def carry_out(orders: dict[str, int | str | None]) -> dict[str, dict]:
        listed = []
        for name, where in orders.items():
            (tmp_path / name).mkdir(exist_ok=True)
            order = {"directory": str(tmp_path / name), "arguments": ["-m", *toy, *SWEEP]}
            at_sbatch = {"environment": {**dying, "DIE": where}} if isinstance(where, str) else {}
            step = where if isinstance(where, int) else None
            listed.append({**order, **at_sbatch, "die_before": step})
        python = {**shell.environment(), **slurm.env}
        said = slurm.run(sys.executable, SCRIPT, json.dumps(listed), env=python, timeout=300)
        return dict(zip(orders, json.loads(said.stdout), strict=True))

    yield carry_out
    slurm.run("scancel", "--me", check=False)
    slurm.wait_idle()


def chosen(steps: list[str]) -> list[int]:
    """Return the steps to die before: of the files that are frozen only three."""
    frozen = [number for number, name in enumerate(steps) if name.endswith("code/NEW/FILE")]
    some = {frozen[0], frozen[len(frozen) // 2], frozen[-1]}
    return [number for number in range(len(steps)) if number in some or number not in frozen]


def runs_of(folder: Path) -> list[Path]:
    plan = Plan.read(folder / "multirun" / "s")
    return [plan.directory(run) for run in plan.runs]


def is_completed(folder: Path) -> bool:
    found = [read_status(run) for run in runs_of(folder)]
    return [s.state for s in found if s is not None] == [State.COMPLETED] * 3


def test_promise_01_a_launcher_killed_at_any_step_leaves_every_run_done_exactly_once(
    launches, slurm, tmp_path
):
    first = launches({"undisturbed": None})["undisturbed"]
    steps = first["steps"]
    assert first["code"] == 0
    points: dict[str, int | str | None] = {
        f"{number:03d} {steps[number].replace('/', '|')}": number for number in chosen(steps)
    }
    points |= {f"sbatch {where}": where for where in ("instead", "after")}
    handed_over = next(i for i, name in enumerate(steps) if name.startswith("call timeout"))
    assert sum(isinstance(p, int) and p <= handed_over for p in points.values()) >= 20, steps
    assert sum(isinstance(p, int) and p > handed_over for p in points.values()) >= 3, steps

    assert {found["code"] for found in launches(points).values()} == {-9}
    assert {found["code"] for found in launches(dict.fromkeys(points)).values()} == {0}

    deadline = time.monotonic() + 240
    while not all(is_completed(tmp_path / name) for name in points):
        assert time.monotonic() < deadline, [n for n in points if not is_completed(tmp_path / n)]
        time.sleep(0.5)
    slurm.wait_idle()
    for name in points:
        assert_each_run_was_done_once(tmp_path / name)
        assert answers(tmp_path / name).count(ledger.TAKEN) == 1, name
    third = launches({"sbatch after": None})["sbatch after"]
    assert "call timeout 60 sbatch" not in third["steps"]


def test_promise_01_an_sbatch_that_outlives_its_launcher_and_the_next_launch_repeats_nothing(
    launches, slurm, tmp_path
):
    assert launches({"late": "meanwhile"})["late"]["code"] == -9
    assert launches({"late": None})["late"]["code"] == 0
    assert answers(tmp_path / "late") == [ledger.VOID, ledger.TAKEN]
    (tmp_path / "late" / "go").touch()
    deadline = time.monotonic() + 60
    while len(set(slurm.run("squeue", "-h", "--states=all", "--format=%j").stdout.split())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    slurm.wait_idle()
    assert is_completed(tmp_path / "late")
    assert_each_run_was_done_once(tmp_path / "late")
    assert launches({"late": None})["late"]["code"] == 0
    assert answers(tmp_path / "late") == [ledger.TAKEN, ledger.TAKEN]


def assert_each_run_was_done_once(folder: Path) -> None:
    runs = runs_of(folder)
    assert len(runs) == 3, folder
    for run in runs:
        assert [r["step"] for r in iter_metrics(run / "metrics.jsonl")] == [1, 2, 3], run
    claims = folder / "multirun" / "s" / SWEEP_DIR / "claims"
    assert sorted(p.name for p in claims.iterdir()) == ["0.1", "1.1", "2.1"], folder


def answers(folder: Path) -> list[str | None]:
    return [entry.answer for entry in ledger.entries(folder / "multirun" / "s" / SWEEP_DIR)]
