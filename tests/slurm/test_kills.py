"""A launcher killed at any step of a submission: launching again loses and repeats nothing."""

import json
import sys
import time
from pathlib import Path

import pytest

from rundir import State, read_status
from rundir.files import SWEEP_DIR, iter_metrics
from sweeps.planning.plan import Plan
from sweeps.records import ledger

SCRIPT = Path(__file__).with_name("killed_launch.py")

SBATCH = """#!/bin/sh
case $DIE in
  instead) kill -9 "$LAUNCHER" ;;
  after) "$SBATCH" "$@"; kill -9 "$LAUNCHER" ;;
  stopped) kill -STOP $(cat "$LAB/run/slurmctld.pid"); exec "$SBATCH" "$@" ;;
  dead) kill -9 $(cat "$LAB/run/slurmctld.pid"); exec "$SBATCH" "$@" ;;
  meanwhile) kill -9 "$LAUNCHER"; until [ -e go ]; do sleep 0.1; done; exec "$SBATCH" "$@" ;;
esac
"""
"""Stands before sbatch: ends the launcher or the controller, before or after it is called."""

SWEEP = ("paths.sweep=s", "cluster=slurm", "cluster.timeout_min=10", "seed=1,2,3")


@pytest.fixture
def launches(shell, slurm, toy, tmp_path):
    """Return a function that launches into directories, each killed at a step or not."""
    yield launching(shell, slurm, toy, tmp_path)
    slurm.run("scancel", "--me", check=False)
    slurm.wait_idle()


@pytest.fixture
def launches_to_break(shell, slurm_forgetful, toy, tmp_path):
    """Return the same on a SLURM of the test's own."""
    return launching(shell, slurm_forgetful, toy, tmp_path)


def launching(shell, slurm, toy, tmp_path):
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

    return carry_out


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


def test_promise_01_where_slurm_has_forgotten_the_job_the_runs_own_records_tell(
    launches_to_break, slurm_forgetful, tmp_path
):
    """The window in which neither squeue nor sacct knows what became of an intent."""
    assert launches_to_break({"short": "after"})["short"]["code"] == -9
    deadline = time.monotonic() + 90
    while slurm_forgetful.run("squeue", "-h", "--states=all").stdout or not any(
        (tmp_path / "short" / "multirun" / "s" / SWEEP_DIR).glob("claims/*")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    again = launches_to_break({"short": None})["short"]
    assert again["code"] == 0
    assert "call timeout 60 sbatch" not in again["steps"]
    assert answers(tmp_path / "short") == [ledger.VOID]
    assert is_completed(tmp_path / "short")
    assert_each_run_was_done_once(tmp_path / "short")


@pytest.mark.parametrize("how", ["stopped", "dead"])
def test_a_controller_that_does_not_answer_is_said_and_launching_again_settles_it(
    launches_to_break, slurm_forgetful, tmp_path, how
):
    assert launches_to_break({"s": how})["s"]["code"] == 3
    said = (tmp_path / "s" / "launch.log").read_text().splitlines()[-1]
    assert "whether it took the job is looked up; 0 of 3 runs were submitted; launch again" in said
    assert answers(tmp_path / "s") == [None]
    if how == "dead":
        assert launches_to_break({"s": None})["s"]["code"] == 3, "squeue can't tell either"
        assert answers(tmp_path / "s") == [None]
        slurm_forgetful.run("slurmctld")
    else:
        pid = (slurm_forgetful.path / "run" / "slurmctld.pid").read_text()
        slurm_forgetful.run("kill", "-CONT", pid.strip())
    deadline = time.monotonic() + 30
    while launches_to_break({"s": None})["s"]["code"] != 0:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    deadline = time.monotonic() + 60
    while not is_completed(tmp_path / "s"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert_each_run_was_done_once(tmp_path / "s")


def test_two_launchers_at_once_submit_once_and_a_killed_one_leaves_no_lock(
    launches, shell, slurm, toy, tmp_path
):
    shell.env.update(slurm.env)
    hold = tmp_path / "bin" / "hold" / "sbatch"
    hold.parent.mkdir()
    sbatch = slurm.run("which", "sbatch").stdout.strip()
    hold.write_text(
        f"#!/bin/sh\nuntil [ -e {tmp_path}/go ]; do sleep 0.1; done\nexec {sbatch} $*\n"
    )
    hold.chmod(0o755)
    command = ("launch", "-m", *toy, *SWEEP)
    (tmp_path / "both").mkdir()
    shell.cwd = tmp_path / "both"
    shell.env["PATH"] = f"{hold.parent}:{slurm.env['PATH']}"
    with shell.start(*command) as first:
        home = shell.cwd / "multirun" / "s" / SWEEP_DIR
        deadline = time.monotonic() + 60
        while not answers(shell.cwd):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = shell(*command, code=2)
        assert second.stderr.startswith(
            f"error: sweep s is being launched already, by process {first.pid} on "
        )
        first.kill()
        first.communicate()
    (tmp_path / "go").touch()
    shell.env["PATH"] = slurm.env["PATH"]
    shell(*command)
    deadline = time.monotonic() + 60
    while not (home / "plan.json").exists() or not is_completed(shell.cwd):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    slurm.wait_idle()
    assert_each_run_was_done_once(shell.cwd)


def assert_each_run_was_done_once(folder: Path) -> None:
    runs = runs_of(folder)
    assert len(runs) == 3, folder
    for run in runs:
        assert [r["step"] for r in iter_metrics(run / "metrics.jsonl")] == [1, 2, 3], run
    claims = folder / "multirun" / "s" / SWEEP_DIR / "claims"
    assert sorted(p.name for p in claims.iterdir()) == ["0.1", "1.1", "2.1"], folder


def answers(folder: Path) -> list[str | None]:
    return [entry.answer for entry in ledger.entries(folder / "multirun" / "s" / SWEEP_DIR)]
