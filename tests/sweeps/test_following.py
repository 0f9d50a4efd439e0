"""The commands that follow a sweep: the log of a run, and what changes."""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rundir import State, Status
from sweeps.commands import following, logs
from sweeps.follow import display, progress
from sweeps.follow.progress import Pace


def test_a_followed_log_ends_with_its_run(shell, toy):
    shell.env["TOY_STEP_S"] = "0.2"
    launcher = shell.start(
        "launch", "-m", *toy, "paths.sweep=s", "seed=903", "training.training_params.max_steps=15"
    )
    while not list(shell.cwd.glob("multirun/s/gpt-tiny/*/*/*/train.log")):
        time.sleep(0.05)
    done = shell("-m", "sweeps", "logs", "s", "0", "--follow")
    launcher.communicate()
    assert "RuntimeError: the task is broken" in done.stdout


def test_a_log_is_followed_in_json_too_a_line_whenever_it_grows(
    make_sweep, sweeps_command, monkeypatch
):
    sweep = make_sweep(runs=1)
    sweep.record(0, State.RUNNING, log="first\nsec")
    log = next(Path("multirun").rglob("train.log"))
    steps = iter(["ond\nthi", "rd"])

    def time_passes(_):
        with log.open("a") as file:
            file.write(next(steps))
        if log.read_text().endswith("third"):
            sweep.record(0, State.COMPLETED)

    # The module's own clock: subprocess sleeps too, as often as the machine's load makes it.
    clock = SimpleNamespace(sleep=time_passes, monotonic=time.monotonic)
    monkeypatch.setattr(logs, "time", clock)
    code, out, _ = sweeps_command("logs", "0", "--follow", "--json")
    told = [(record["state"], record["lines"]) for record in map(json.loads, out.splitlines())]
    assert code == 0
    assert told == [
        ("running", ["first"]),
        ("running", ["second"]),
        ("completed", ["third"]),
    ]


def test_the_log_of_a_worker_is_shown_where_the_run_has_none(make_sweep, sweeps_command, json_of):
    sweep = make_sweep(runs=2)
    sweep.hand_over()
    folder = sweep.plan.home / "submissions" / "abc"
    (folder / "12_1_0_log.out").write_text("no such file or directory: python\n")
    assert sweeps_command("logs", "1")[1] == "no such file or directory: python\n"
    sweep.record(1, State.FAILED, log="of the run\n")
    assert sweeps_command("logs", "1")[1] == "of the run\n"
    found = json_of("logs", "1", "--worker")
    assert found["lines"] == ["no such file or directory: python"]


def test_watch_backs_off_while_nothing_changes_and_is_quick_again_on_a_change():
    pace, pauses, pause = Pace(), [], 2.0
    for _ in range(10):
        pause = pace.after(pause, has_changed=False, has_moved=False)
        pauses.append(pause)
    assert pauses == sorted(pauses)
    assert pauses[-1] == 30.0
    assert pace.after(30.0, has_changed=False, has_moved=True) == 10.0
    assert pace.after(30.0, has_changed=True, has_moved=True) == 2.0


def test_watch_prints_a_json_line_a_change_and_ends_with_the_runs(make_sweep, sweeps_command):
    sweep = make_sweep(runs=1)
    sweep.record(0, State.FAILED, reason="broken")
    code, out, _ = sweeps_command("watch", "--json")
    (line,) = out.splitlines()
    assert code == 1
    assert json.loads(line)["summary"] == {"runs": 1, "states": {"failed": 1}}


@pytest.mark.parametrize("command", [["watch"], ["logs", "0", "--follow"]])
def test_ctrl_c_while_following_exits_130(make_sweep, sweeps_command, monkeypatch, command):
    def interrupt(_):
        raise KeyboardInterrupt

    make_sweep(runs=1).record(0, State.RUNNING, log="")
    monkeypatch.setattr(following.time, "sleep", interrupt)
    assert sweeps_command(*command)[0] == 130


@pytest.mark.parametrize("is_first", [True, False])
def test_a_run_goes_on_where_its_terminal_was_closed(monkeypatch, is_first):
    ours, theirs = os.openpty()
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        shown = progress.OneRun("a")
        if not is_first:
            shown(Status(State.RUNNING))
            assert b"running" in os.read(ours, 1000)
        os.close(ours)
        shown(Status(State.RUNNING))
        shown(Status(State.COMPLETED))
        display.err.print("said in vain")
