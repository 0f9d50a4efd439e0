"""The commands that steer a sweep, and the shell's completion of them."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from analysis import tables
from analysis.collecting import collector
from analysis.parquet.parts import read_problems
from rundir import State, read_status
from sweeps.commands import following
from sweeps.planning.identity import signature
from sweeps.planning.plan import PlanBase
from sweeps.records import claims, ledger
from sweeps.records.ledger import Share, Submission
from sweeps.records.owners import Owner, named

ROOT = Path(__file__).resolve().parents[2]


def test_promise_16_retry_says_why_each_run_ended_and_then_submits_it_again(shell, toy):
    shell("launch", "-m", *toy, "paths.sweep=s", "seed=1,903", code=1)
    dry = shell("-m", "sweeps", "retry", "s", "--dry-run")
    assert "seed=903  failed on " in dry.stderr
    assert ": RuntimeError: the task is broken" in dry.stderr
    assert "dry run: 1 run would be submitted again" in dry.stderr
    assert shell.status("s")[1]["attempts"] == 1
    done = shell("-m", "sweeps", "retry", "s", code=1)
    why, counted, _ = done.stderr.partition("sweep s: 1 of 2 runs to submit again\n")
    assert counted
    assert why.count("the task is broken") == 1
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
    own = read_status(sweep.plan.directory(sweep.plan.runs[1]))
    assert own.reason == "cancelled by the user before it began"
    assert claims.attempts(sweep.plan.claims) == {"1": 1}


def test_a_run_cancelled_before_it_began_has_its_config_on_record(
    make_sweep, json_of, monkeypatch, tmp_path
):
    sweep = make_sweep(runs=2)
    config = "task: toy.run\nseed: 0\noptimizer: {lr: 0.1}\n"
    resolved = {"task": "toy.run", "seed": 1, "optimizer": {"lr": 0.1}}
    run = replace(sweep.plan.runs[1], signature=signature(resolved))
    sweep.plan.runs[1], sweep.plan.bases = run, [PlanBase((), config, "{}")]
    sweep.plan.write()
    sweep.hand_over("local")
    monkeypatch.setattr("sweeps.records.ledger.Entry.live_job", lambda *_: "local workers")
    json_of("cancel", "--runs", "1")
    collector.collect([tmp_path / "multirun"], store=tmp_path / "store")
    row = tables.runs(store=tmp_path / "store", all_columns=True).set_index("name").loc["seed-1"]
    assert (row["state"], row["config.seed"], row["index"]) == ("cancelled", 1, 1)
    assert read_problems(tmp_path / "store").num_rows == 0


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
        ("python -m sweeps logs other see", {"seed-0"}),
        ("python -m sweeps cancel other --runs se", {"seed-0"}),
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


@pytest.fixture
def slurm_that_obeys(tmp_path, monkeypatch):
    """Put a squeue on the PATH that shows what a test says until scancel is called."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "bin").mkdir()
    queue = tmp_path / "queue"
    for name, script in (
        ("squeue", f"cat {queue}"),
        ("scancel", f"echo $* >>{tmp_path}/cancelled; : >{queue}"),
        ("sacct", "exit 1"),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return queue


def test_a_cancelled_run_says_that_the_user_cancelled_it_and_is_no_failure(
    make_sweep, sweeps_command, json_of, slurm_that_obeys, tmp_path
):
    """Whether it was at work or waited; launching again and `retry` take it up again."""
    sweep = make_sweep(runs=4)
    sweep.hand_over()
    sweep.record(0, State.COMPLETED)
    sweep.record(1, State.RUNNING, owner=Owner("n1", "elsewhere", 1, 1, "12_1"))
    waiting = "".join(f"12|{i}|PENDING||Priority|s.abc\n" for i in (2, 3))
    slurm_that_obeys.write_text(f"12|1|RUNNING|n1|None|s.abc\n{waiting}")
    assert sweeps_command("cancel", "--runs", "2")[2] == "sweep s: cancelled 1 run, 1 SLURM job\n"
    slurm_that_obeys.write_text("12|1|RUNNING|n1|None|s.abc\n12|3|PENDING||Priority|s.abc\n")
    code, _, err = sweeps_command("cancel")
    more = "; runs at work save a checkpoint first"
    assert (code, err) == (0, f"sweep s: cancelled 2 runs, 1 SLURM job{more}\n")
    assert (tmp_path / "cancelled").read_text() == "12_2\n12\n"
    stopped = "SIGTERM at step 12 of 60; checkpoint written; not requeued: the sweep was cancelled"
    sweep.record(1, State.PREEMPTED, step=12, reason=stopped)
    found = json_of("status")
    assert found["summary"]["states"] == {"completed": 1, "cancelled": 3}
    before = "cancelled by the user before it began"
    assert [run["reason"] for run in found["runs"]] == [
        None,
        "cancelled by the user; SIGTERM at step 12 of 60; checkpoint written",
        before,
        before,
    ]
    assert found["failures"] == []
    assert sweeps_command("status")[0] == 0
    assert [run["index"] for run in json_of("retry", "--dry-run")["runs"]] == [1, 2, 3]
    said = sweeps_command("cancel")[2]
    assert said == "sweep s: nothing to cancel; 4 runs: 1 completed, 3 cancelled\n"


def test_a_run_that_fails_after_its_cancellation_is_told_as_failed(
    make_sweep, json_of, slurm_that_obeys
):
    sweep = make_sweep(runs=1)
    sweep.hand_over()
    sweep.record(0, State.RUNNING, owner=Owner("n1", "elsewhere", 1, 1, "12_0"))
    slurm_that_obeys.write_text("12|0|RUNNING|n1|None|s.abc\n")
    json_of("cancel")
    sweep.record(0, State.FAILED, reason="RuntimeError: no checkpoint")
    assert json_of("status")["runs"][0]["state"] == "failed"


def test_promise_01_what_a_killed_launcher_has_submitted_is_seen_and_cancelled(
    make_sweep, json_of, slurm_that_obeys, tmp_path
):
    """It died between sbatch and the ledger: the job's name alone tells whose it is."""
    sweep = make_sweep(runs=2)
    runs = tuple((run.index, 1) for run in sweep.plan.runs)
    Submission("abc", Share("slurm", runs, 2, drain=False, threads=1), "hash", "/").write(
        sweep.plan.home
    )
    ledger.record(sweep.plan.home, "intent", "abc")
    slurm_that_obeys.write_text("".join(f"12|{i}|PENDING||Priority|s.abc\n" for i in range(2)))
    assert [(run["state"], run["job"]) for run in json_of("status")["runs"]] == [
        ("pending", "12_0"),
        ("pending", "12_1"),
    ]
    (tmp_path / "bin" / "squeue").write_text(
        f"#!/bin/sh\ncase $* in *%K*) cat {slurm_that_obeys};; *) echo '12|s.abc';; esac\n"
    )
    assert json_of("cancel")["runs"] == [0, 1]
    assert (tmp_path / "cancelled").read_text() == "12\n"
    assert {run["state"] for run in json_of("status")["runs"]} == {"cancelled"}


def test_a_submission_that_gets_through_to_slurm_after_the_cancellation_begins_nothing(
    make_sweep, json_of, slurm_that_obeys
):
    """As an sbatch does that outlives its launcher; workers heed the mark."""
    sweep = make_sweep(runs=1)
    share = Share("slurm", ((0, 1),), 1, drain=False, threads=1)
    Submission("abc", share, "hash", "/").write(sweep.plan.home)
    ledger.record(sweep.plan.home, "intent", "abc")
    slurm_that_obeys.write_text("")
    json_of("cancel")
    (entry,) = ledger.entries(sweep.plan.home)
    assert (entry.answer, entry.submission.is_cancelled(sweep.plan.home)) == (ledger.VOID, True)


def test_cancel_waits_for_no_launch_but_says_that_one_is_under_way(make_sweep, sweeps_command):
    """Behind its back the launch would submit the arrays that it has not come to yet."""
    sweep = make_sweep()
    with ledger.locked(sweep.plan.home, "s"):
        code, _, err = sweeps_command("cancel")
    assert code == 2
    assert err.startswith("error: sweep s is being launched already, by process")


def test_cancel_counts_no_worker_of_a_slurm_job_as_a_local_one(
    make_sweep, json_of, slurm_that_obeys
):
    """On a machine that is login node and compute node in one its process lives here."""
    sweep = make_sweep(runs=1)
    sweep.hand_over()
    with subprocess.Popen(["sleep", "60"]) as worker:
        sweep.record(0, State.RUNNING, owner=named(worker.pid, "12_0"))
        slurm_that_obeys.write_text("12|0|RUNNING|n1|None|s.abc\n")
        found = json_of("cancel")
        assert worker.poll() is None
        worker.kill()
    assert (found["elements"], found["local_workers"]) == (["12"], 0)


@pytest.fixture
def second_stage(tmp_path, monkeypatch):
    """A second stage whose launch waits as job 13 for job 12."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "multirun" / "two" / ".sweep" / "successor"
    folder.mkdir(parents=True)
    record = {"job": "13", "command": "python launch.py", "after": "one", "jobs": ["12"]}
    (folder / "waiting.json").write_text(json.dumps(record))
    return folder


def test_a_second_stage_that_waits_is_listed_told_and_cancelled(
    second_stage, make_sweep, sweeps_command, json_of, slurm_that_obeys, tmp_path
):
    make_sweep("one", runs=1)
    slurm_that_obeys.write_text("13|0|PENDING||Dependency|two.successor\n")
    told = "waits for one (job 12); job 13 launches it"
    assert sweeps_command("status", "two") == (0, f"sweep two: {told}\n", "")
    first = {"sweep": "one", "jobs": ["12"]}
    place = {"sweep": "two", "directory": "multirun/two", "waits_for": first}
    assert json_of("status", "two") == {**place, "job": "13", "runs": []}
    assert sweeps_command("ls")[1].splitlines()[2].strip() == f"two    {told}  multirun/two"
    assert json_of("ls")[1] == place
    said = "sweep two: cancelled job 13, which was to launch it after one\n"
    assert sweeps_command("cancel", "two") == (0, "", said)
    assert (tmp_path / "cancelled").read_text() == "13\n"
    error = "error: multirun/two has no plan; launch it again\n"
    assert sweeps_command("status", "two") == (2, "", error)


@pytest.mark.parametrize("command", [["logs", "two", "0"], ["retry", "two"]])
def test_commands_about_runs_say_what_a_second_stage_waits_for(
    second_stage, sweeps_command, slurm_that_obeys, command
):
    slurm_that_obeys.write_text("13|0|PENDING||Dependency|two.successor\n")
    said = "multirun/two waits for one (job 12); job 13 launches it"
    assert sweeps_command(*command) == (2, "", f"error: {said}\n")


@pytest.mark.parametrize("command", [["watch", "two"], ["logs", "two", "0", "--follow"]])
def test_following_a_second_stage_waits_until_it_is_launched(
    second_stage, make_sweep, sweeps_command, slurm_that_obeys, monkeypatch, command
):
    slurm_that_obeys.write_text("13|0|PENDING||Dependency|two.successor\n")
    looks = iter(["still waits", "launched"])

    def time_passes(_):
        if next(looks) == "launched":
            make_sweep("two", runs=1).record(0, State.COMPLETED, log="trained\n")

    # The module's own clock: subprocess sleeps too, as often as the machine's load makes it.
    clock = SimpleNamespace(sleep=time_passes, monotonic=time.monotonic)
    monkeypatch.setattr(following, "time", clock)
    code, _, err = sweeps_command(*command)
    assert code == 0
    assert err.startswith("sweep two: waits for one (job 12); job 13 launches it\n")


def test_a_second_stage_whose_job_is_gone_or_failed_is_not_said_to_wait(
    second_stage, sweeps_command, slurm_that_obeys
):
    slurm_that_obeys.write_text("")
    gone = "multirun/two is not launched: its job 13 is gone; launch it again"
    assert sweeps_command("status", "two") == (2, "", f"error: {gone}\n")
    (second_stage / "13_0_log.out").write_text("error: sweep two comes after one, which failed\n")
    said = "multirun/two was not launched: sweep two comes after one, which failed"
    assert sweeps_command("cancel", "two") == (2, "", f"error: {said}\n")
    assert said.partition(" ")[2] in sweeps_command("ls")[1]


def test_ls_says_where_there_is_no_sweep(sweeps_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sweeps_command("ls") == (0, "", f"no sweep in {tmp_path}/multirun\n")


def test_a_local_sweep_is_cancelled_from_another_shell_and_taken_up_again(shell, toy):
    shell.env["TOY_STEP_S"] = "0.2"
    steps = "training.training_params.max_steps=60"
    launch = ("launch", "-m", *toy, "paths.sweep=s", "seed=1,2,3", steps)
    launcher = shell.start(*launch)
    while not list(shell.cwd.glob("multirun/s/gpt-tiny/*/*/*/metrics.jsonl")):
        time.sleep(0.05)
    assert "cancelled 3 runs, " in shell("-m", "sweeps", "cancel", "s").stderr
    _, told = launcher.communicate()
    assert launcher.returncode == 0
    assert "sweep s: 3 runs: 3 cancelled\n" in told
    reasons = {run["reason"].partition(";")[0] for run in shell.status("s")}
    assert reasons <= {"cancelled by the user", "cancelled by the user before it began"}
    shell.env["TOY_STEP_S"] = "0"
    shell("-m", "sweeps", "retry", "s")
    assert {run["state"] for run in shell.status("s")} == {"completed"}
