"""The commands that steer a sweep, and the shell's completion of them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rundir import State, read_status
from sweeps.follow.progress import Pace
from sweeps.records import claims

ROOT = Path(__file__).resolve().parents[2]


def test_promise_16_retry_says_why_each_run_ended_and_then_submits_it_again(shell, toy):
    shell("launch", "-m", *toy, "paths.sweep=s", "seed=1,903", code=1)
    dry = shell("-m", "sweeps", "retry", "s", "--dry-run")
    assert "seed=903  failed on " in dry.stderr
    assert ": RuntimeError: the task is broken" in dry.stderr
    assert "dry run: 1 run would be submitted again" in dry.stderr
    assert shell.status("s")[1]["attempts"] == 1
    done = shell("-m", "sweeps", "retry", "s", code=1)
    assert done.stderr.index("the task is broken") < done.stderr.index("1 to submit")
    runs = shell.status("s")
    assert [(run["state"], run["attempts"]) for run in runs] == [("completed", 1), ("failed", 2)]


def test_retry_takes_only_the_states_and_runs_asked_for(make_sweep, json_of):
    sweep = make_sweep(runs=5)
    sweep.record(0, State.FAILED, reason="a")
    sweep.record(1, State.TIMEOUT, reason="b")
    sweep.record(2, State.COMPLETED)
    sweep.record(3, State.DIVERGED)
    chosen = [
        [run["index"] for run in json_of("retry", "--dry-run", *more)["runs"]]
        for more in (
            (),
            ("--state", "timeout"),
            ("--state", "failed,planned"),
            ("--runs", "1-3"),
        )
    ]
    assert chosen == [[0, 1], [1], [0, 4], [1]]


def test_cancelling_a_waiting_run_takes_it_from_the_workers_for_good(
    make_sweep, sweeps_command, json_of, monkeypatch
):
    sweep = make_sweep(runs=3)
    sweep.hand_over("local")
    monkeypatch.setattr("sweeps.records.ledger.Entry.live_job", lambda *_: "local workers")
    assert json_of("cancel", "--runs", "1")["runs"] == [1]
    assert [run["state"] for run in json_of("status")["runs"]] == [
        "pending",
        "cancelled",
        "pending",
    ]
    assert (
        read_status(sweep.plan.directory(sweep.plan.runs[1])).reason == "cancelled before it began"
    )
    assert claims.attempts(sweep.plan.claims) == {"1": 1}


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


def test_promise_27_no_command_on_the_login_node_imports_torch(make_sweep):
    sweep = make_sweep(runs=2)
    sweep.record(0, State.FAILED, reason="broken", log="x\n")
    code = """
import sys
from sweeps.__main__ import main
for words in ("status", "status --json", "watch", "logs 0", "ls", "retry --dry-run", "completion"):
    main(words.split())
print([name for name in ("torch", "numpy", "pandas", "submitit") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def completed(cwd: Path, line: str, *, before: str = "") -> list[str]:
    """Return what a real bash offers after ``line`` when Tab is pressed at its end."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    script = f"""
{before}
eval "$({sys.executable} -m sweeps completion)"
COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1}
name=$(complete -p python | sed -n 's/.* -F \\([^ ]*\\) .*/\\1/p')
"$name" python '{words[-1]}' '{words[-2]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("python -m sweeps st", {"status"}),
        ("python -m sweeps status ad", {"adam_first", "adam_second"}),
        ("python -m sweeps retry --ex", {"--exclude-bad-nodes"}),
        ("python -m sweeps retry --state node", {"node_fail"}),
        ("python -m other st", set()),
    ],
)
def test_bash_completes_commands_sweeps_options_and_states(make_sweep, tmp_path, line, offered):
    for name in ("adam_first", "adam_second", "other"):
        make_sweep(name, runs=1)
    assert set(completed(tmp_path, line)) == offered


def test_hydras_completion_of_launch_completes_groups_and_goes_on_beside_ours(tmp_path):
    for name in ("launch.py", "conf", "sweeps"):
        (tmp_path / name).symlink_to(ROOT / name)
    hydra = 'eval "$(python launch.py -sc install=bash)"'
    assert "optimizer=adamw" in completed(tmp_path, "python launch.py optimizer=adam", before=hydra)
    offered = completed(tmp_path, "python launch.py sweep=qui", before=hydra)
    assert offered == ["sweep=quickstart"]
    assert completed(tmp_path, "python -m sweeps st", before=hydra) == ["status"]
