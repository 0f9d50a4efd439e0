"""Where runs stand, as ``status`` tells it from the records of a sweep."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from rundir import Run, State, UserError
from rundir.files import write_status
from sweeps.cluster.scheduler import Element, Queue
from sweeps.follow import display, states
from sweeps.follow.selection import pick
from sweeps.planning.plan import Plan
from sweeps.records import ledger
from sweeps.records.owners import Owner


def test_promise_02_a_failed_run_is_never_shown_as_completed_and_says_why(
    make_sweep, sweeps_command
):
    sweep = make_sweep(runs=3)
    sweep.record(0, State.COMPLETED, step=3, total_steps=3)
    sweep.record(1, State.FAILED, reason="RuntimeError: it broke", log="one\ntwo\nTraceback\n")
    sweep.record(2, State.FAILED, reason="RuntimeError: it broke", log="other\n")
    code, out, err = sweeps_command("status", "s")
    assert code == 1
    assert out.startswith("sweep s: 3 runs: 1 completed, 2 failed\n")
    assert out.count("the end of") == 1, "each distinct failure once"
    assert "2 runs failed on" in out
    assert "    Traceback\n" in out
    assert err == ""


def test_a_sweep_without_a_bad_run_exits_0(make_sweep, sweeps_command):
    sweep = make_sweep(runs=2)
    sweep.record(0, State.COMPLETED)
    sweep.record(1, State.DIVERGED, reason="loss is nan at step 2")
    assert sweeps_command("status")[0] == 0


def test_a_run_shows_step_loss_speed_time_left_and_node(make_sweep, sweeps_command):
    sweep = make_sweep(runs=1)
    figures = {"loss": 3.25, "tokens_per_second": 12345.6}
    more = {"step": 30, "total_steps": 90, "figures": figures, "seconds_left": 125.0}
    sweep.record(0, State.RUNNING, node="n7", **more)
    row = sweeps_command("status")[1].splitlines()[2].split()
    assert row == ["0", "seed-0", "running", "30/90", "3.2500", "12,346", "2:05", "n7"]


@pytest.mark.parametrize("width", [160, 80, 60, 40])
def test_a_narrow_terminal_cuts_no_word_and_leaves_reasons_room(
    make_sweep, sweeps_command, monkeypatch, width
):
    sweep = make_sweep(runs=1)
    reason = "cancelled by the user; SIGTERM at step 450 of 1500; checkpoint written"
    figures = {"loss": 2.0498, "tokens_per_second": 10622.0}
    sweep.record(0, State.CANCELLED, step=448, total_steps=1500, figures=figures, reason=reason)
    monkeypatch.setattr(display, "out", Console(width=width, highlight=False))
    table, _, rest = sweeps_command("status")[1].partition("\n\n")
    lines = table.splitlines()[1:]
    assert rest.startswith("1 run cancelled")
    assert max(map(len, lines)) <= width
    assert lines[1].split()[:3] == ["0", "seed-0", "cancelled"]
    assert ("10,622" in lines[1]) == (width == 160)
    assert len(lines) <= 5, "a reason is folded into a few lines"
    assert "".join("".join(lines).split()).endswith("".join(reason.split()))


def test_a_run_whose_process_is_gone_has_no_time_left(make_sweep, sweeps_command, dead):
    sweep = make_sweep(runs=1)
    sweep.record(0, State.RUNNING, owner=dead, step=30, total_steps=90, seconds_left=125.0)
    table = sweeps_command("status")[1].partition("\n\n")[0]
    assert "lost" in table
    assert "2:05" not in table


def test_a_large_sweep_shows_running_and_bad_runs_and_says_how_to_see_all(
    make_sweep, sweeps_command
):
    sweep = make_sweep(runs=60)
    for index in range(60):
        sweep.record(index, State.FAILED if index == 41 else State.COMPLETED, reason="broken")
    sweep.record(59, State.RUNNING, attempt=2)
    short, full = (sweeps_command("status", *more)[1] for more in ((), ("--all",)))
    assert [line.split()[0] for line in short.splitlines()[2:4]] == ["59", "41"]
    assert "not shown: 58 completed; --all shows every run" in short
    assert sum("seed=" in line for line in full.splitlines()) == 60


def test_json_has_the_documented_keys(make_sweep, json_of):
    sweep = make_sweep(runs=2)
    sweep.record(0, State.FAILED, reason="broken", log="last words\n", node="n1")
    found = json_of("status")
    assert set(found) == {
        "sweep",
        "directory",
        "created_at",
        "asked_at",
        "summary",
        "notes",
        "nodes",
        "failures",
        "runs",
    }
    assert found["summary"] == {"runs": 2, "states": {"planned": 1, "failed": 1}}
    assert found["failures"][0]["nodes"] == {"n1": 1}
    assert set(found["runs"][0]) == set(found["runs"][1])
    assert found["runs"][1]["step"] is None


def test_promise_14_without_an_answer_of_squeue_what_may_wait_is_not_called_gone(
    make_sweep, json_of, monkeypatch, tmp_path
):
    """A squeue that fails stands for a controller that is down."""
    (tmp_path / "bin").mkdir()
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text(
        "#!/bin/sh\necho 'squeue: error: Unable to contact slurm controller' >&2\nexit 1\n"
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(squeue.parent), prepend=os.pathsep)
    sweep = make_sweep(runs=2)
    sweep.hand_over()
    sweep.record(0, State.COMPLETED)
    found = json_of("status")
    assert [run["state"] for run in found["runs"]] == ["completed", "pending"]
    assert "squeue does not answer" in found["runs"][1]["reason"]
    assert "Unable to contact slurm controller" in found["notes"][0]


def test_promise_14_a_slow_or_silent_sacct_holds_nothing_up_and_is_told_of(
    make_sweep, json_of, monkeypatch, tmp_path
):
    (tmp_path / "bin").mkdir()
    for name, script in (("squeue", "exit 0"), ("sacct", "exec sleep 60")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr("sweeps.cluster.scheduler.ACCOUNTING_S", 0.3)
    sweep = make_sweep(runs=1)
    sweep.hand_over()
    sweep.record(0, State.RUNNING, owner=Owner("n1", "elsewhere", 1, 1, "12_0"))
    found = json_of("status")
    assert found["runs"][0]["state"] == "lost"
    assert found["notes"] == [
        "sacct did not answer within 0.3 s; how 1 run ended is known only as far as shown"
    ]


def test_promise_22_status_of_a_sweep_opens_nothing_of_other_sweeps(make_sweep, sweeps_command):
    for number in range(5):
        make_sweep(f"old{number}").record(0, State.COMPLETED)
    make_sweep("mine").record(0, State.COMPLETED)
    opened: list[str] = []
    watching = [True]

    def hook(event: str, arguments: tuple) -> None:
        if watching[0] and event in {"open", "os.listdir", "os.scandir"}:
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    sweeps_command("status", "mine")
    watching[0] = False
    assert any("multirun/mine" in path for path in opened)
    assert not [path for path in opened if "multirun/old" in path]


def test_promise_23_failures_are_grouped_by_node_and_a_bad_node_is_named(
    make_sweep, sweeps_command, json_of
):
    sweep = make_sweep(runs=11)
    for index in range(11):
        bad = index < 5
        state = State.FAILED if bad or index == 5 else State.COMPLETED
        sweep.record(index, state, node="n3" if bad else f"n{index % 2}", reason="CUDA error")
    out = sweeps_command("status")[1]
    assert "n3: 5 of 5 runs failed" in out
    assert "suspicious: n3; `retry --exclude-bad-nodes` avoids it" in out
    blamed = {node["node"]: node["is_suspicious"] for node in json_of("status")["nodes"]}
    assert blamed == {"n3": True, "n1": False}
    retried = json_of("retry", "--dry-run", "--exclude-bad-nodes")
    assert retried["excluded_nodes"] == ["n3"]
    assert len(retried["runs"]) == 6


def test_a_sweep_that_fails_everywhere_blames_no_node(make_sweep, json_of):
    sweep = make_sweep(runs=8)
    for index in range(8):
        sweep.record(index, State.FAILED, node=f"n{index % 2}", reason="a bug")
    assert not any(node["is_suspicious"] for node in json_of("status")["nodes"])


def test_failures_that_luck_may_have_strewn_so_blame_no_node(make_sweep, json_of):
    """Four of five on one node and one of four on the other: one such draw in six."""
    sweep = make_sweep(runs=9)
    for index in range(9):
        state = State.FAILED if index in {0, 1, 2, 3, 8} else State.COMPLETED
        sweep.record(index, state, node="n2" if index < 5 else "n1", reason="ValueError: lr")
    assert not any(node["is_suspicious"] for node in json_of("status")["nodes"])


@pytest.mark.parametrize(("again", "is_blamed"), [("step 7: bad", False), ("CUDA error", True)])
def test_a_run_that_failed_alike_on_two_nodes_blames_neither(make_sweep, json_of, again, is_blamed):
    sweep = make_sweep(runs=20)
    for index in range(20):
        if index < 10:
            sweep.record(index, State.COMPLETED, node=f"n{index % 2}")
            continue
        sweep.record(index, State.FAILED, node="n3", reason="step 5: bad")
        run = Run(sweep.plan.directory(sweep.plan.runs[index]), attempt=2)
        assert run.status.earlier == {"n3": "step 5: bad"}
        run.end(State.FAILED, again)
        ended = replace(run.status, node="n4")
        write_status(run.path, ended)
    blamed = {node["node"]: node["is_suspicious"] for node in json_of("status")["nodes"]}
    assert blamed == {"n4": is_blamed}


def test_promise_24_following_writes_nothing_and_survives_torn_files(make_sweep, json_of):
    """Plain files, no database: a line or file torn by a crash costs at most itself."""
    sweep = make_sweep(runs=3)
    sweep.hand_over("local")
    sweep.record(0, State.COMPLETED)
    sweep.record(1, State.COMPLETED)
    with (sweep.plan.home / "ledger.jsonl").open("a") as file:
        file.write('{"event": "job", "subm')
    (sweep.plan.directory(sweep.plan.runs[1]) / "status.json").write_text('{"state": "comp')
    before = {p: p.stat().st_mtime_ns for p in sweep.plan.root.rglob("*")}
    found = [run["state"] for run in json_of("status")["runs"]]
    assert found[0] == "completed"
    assert found[1] == "lost", "no record of the end is left, so none is claimed"
    assert {p: p.stat().st_mtime_ns for p in sweep.plan.root.rglob("*")} == before
    assert not [p for p in before if p.suffix in {".db", ".sqlite", ".sqlite3"}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("status", "runn"),
            "unknown sweep runn in multirun; must be one of: run1; did you mean run1?",
        ),
        (("logs", "seed-9"), "must be one of: seed-0, seed-1, seed-2, seed-3; did you mean seed-"),
        (("logs", "7"), "run = 7; must be within 0-3 in run1"),
        (("cancel", "--runs", "2-9"), "run = 2-9; must be within 0-3 in run1"),
        (("retry", "--state", "faild"), "did you mean failed?"),
        (("retry", "--state", "completed"), "unknown state completed in --state"),
        (("logs", "0"), "seed-0 has no log yet; it is planned"),
        (
            ("statsu",),
            "unknown command statsu; must be one of: cancel, compare, completion, logs, ls",
        ),
        (("statsu",), "; did you mean status?"),
        (("logs", "seed"), "run = seed; must name one run of run1, not seed-0, seed-1, seed-2, …"),
        (("ls", "--multirun", "run1/nope", "--all"), None),
        (("retry", "--state", "failed", "run"), "unknown sweep run in multirun"),
        (("cancel", "--runs", "9", "run1"), "run = 9; must be within 0-3 in run1"),
        (
            ("cancel", "--runs", "3", "4"),
            "must be one of: run1; several values take commas: --runs 3,4\n",
        ),
        (("retry", "run1", "--state", "a", "b"), "several values take commas: --state a,b; see "),
        (("cancel", "--runs", "3", "run2"), "must be one of: run1; did you mean run1?\n"),
        (("logs", "run1", "-f", "9"), "run = 9; must be within 0-3 in run1"),
        ((), "the following arguments are required: COMMAND; see python -m sweeps --help"),
        (("logs",), "the following arguments are required: run; see python -m sweeps logs --help"),
        (("status", "run1", "b", "c"), "too many words: b c; see python -m sweeps status --help"),
        (("status", "--jsn"), "unknown option --jsn in python -m sweeps status; must be one of: "),
        (("status", "--jsn"), "; did you mean --json?"),
        (("compare", "a", "b", "--rtol", "x"), "argument --rtol: invalid float value: 'x'; see "),
        (("rerun", "a", "--here", "--cluster"), "--cluster: not allowed with argument --here"),
    ],
)
def test_bad_input_is_one_line_with_the_nearest_spelling(
    make_sweep, sweeps_command, arguments, said
):
    make_sweep("run1")
    code, out, err = sweeps_command(*arguments)
    assert (code, out) == ((2, "") if said else (0, ""))
    assert said is None or (said in err and err.startswith("error: ") and err.count("\n") == 1)


def test_sweeps_elsewhere_are_found_by_multirun_and_by_path(make_sweep, sweeps_command, tmp_path):
    make_sweep("s")
    os.rename("multirun", "elsewhere")
    for arguments in (
        ("--multirun", "elsewhere"),
        ("s", "--multirun", "elsewhere"),
        ("elsewhere/s",),
    ):
        assert sweeps_command("status", *arguments)[1].startswith("sweep s: 4 runs: 4 planned")


def test_ls_shows_the_counts_of_every_sweep(make_sweep, sweeps_command, json_of):
    make_sweep("a").record(0, State.COMPLETED)
    make_sweep("b", runs=1)
    lines = sweeps_command("ls")[1].splitlines()
    assert lines[0].split() == ["created", "sweep", "runs", "directory"]
    assert lines[1].endswith("  a      4 runs: 3 planned, 1 completed  multirun/a")
    assert lines[2].endswith("  b      1 run: 1 planned                multirun/b")
    assert [row["summary"]["runs"] for row in json_of("ls")] == [4, 1]


@pytest.mark.parametrize("plan", ["", "[]", '{"version": 1}', '{"version": 1, "runs": [3]}'])
def test_a_damaged_plan_costs_ls_that_sweep_only(make_sweep, sweeps_command, json_of, plan):
    make_sweep("a")
    path = make_sweep("b").plan.home / "plan.json"
    path.write_text(plan)
    error = f"{path} is not a plan; restore it or move the sweep away"
    assert sweeps_command("status", "b") == (2, "", f"error: {error}\n")
    code, out, _ = sweeps_command("ls")
    assert code == 0
    assert "4 runs: 4 planned" in out
    assert out.splitlines()[2].split(maxsplit=1) == ["b", f"{error}  multirun/b"]
    assert json_of("ls")[1] == {"sweep": "b", "directory": "multirun/b", "error": error}


@pytest.mark.parametrize("text", ["", "{}", '{"host": 1}'])
def test_a_damaged_claim_costs_its_run_only_and_holds_it_while_anything_is_at_work(
    make_sweep, json_of, monkeypatch, text
):
    sweep = make_sweep(runs=3)
    sweep.hand_over()
    sweep.record(1, State.COMPLETED)
    for name in ("0.1", "1.1"):
        (sweep.plan.claims / name).write_text(text)
    queue = Queue({"12_2": Element("RUNNING")})
    monkeypatch.setattr(states, "queue_of", lambda *_: queue)
    said = "the claim of attempt 1 is damaged and does not say who is at work"
    found = [(run["state"], run["reason"]) for run in json_of("status")["runs"]]
    assert found[:2] == [("running", said), ("completed", None)]
    queue.clear()
    run = json_of("status")["runs"][0]
    assert (run["state"], run["attempts"]) == ("lost", 1)
    assert run["reason"] == f"{said}; nothing of the sweep is at work any more"


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{}",
        '{"t": 1, "submission": "abc"}',
        '{"t": 1, "event": "cancelled", "submission": "abc"}',
        '{"t": 1, "event": "job", "submission": "abc", "owners": [{}]}',
        '{"t": "x", "event": "job", "submission": 3}',
        "\udcff",
    ],
)
def test_a_damaged_line_of_the_ledger_costs_at_most_itself(make_sweep, sweeps_command, line):
    sweep = make_sweep(runs=2)
    sweep.record(0, State.COMPLETED)
    sweep.record(1, State.COMPLETED)
    sweep.hand_over("local")
    before = ledger.entries(sweep.plan.home)
    with (sweep.plan.home / "ledger.jsonl").open("a", errors="surrogateescape") as file:
        file.write(line + "\n")
    assert ledger.entries(sweep.plan.home) == before
    assert sweeps_command("status")[0] == 0


@pytest.mark.parametrize("text", ["{}", '{"share": 1}', "[]"])
def test_a_submission_whose_record_is_damaged_is_warned_of(make_sweep, sweeps_command, text):
    sweep = make_sweep(runs=1)
    sweep.hand_over("local")
    file = sweep.plan.home / "submissions" / "abc" / "submission.json"
    file.write_text(text)
    (entry,) = ledger.entries(sweep.plan.home)
    assert (entry.submission.id, entry.is_damaged, entry.submission.share.runs) == ("abc", True, ())
    said = f"{file} can't be read; which runs it was to do is not known"
    assert said in " ".join(sweeps_command("status")[2].split())


def test_a_run_is_named_by_index_name_label_or_the_beginning_of_its_name(make_sweep):
    runs = [replace(run, name=f"lr-{run.index}-x") for run in make_sweep(runs=3).plan.runs]
    twofold = [replace(run, overrides=(f"seed={run.index}", f"lr=0.{run.index}")) for run in runs]
    for told, label in ((runs, "seed=2"), (twofold, "seed=2, lr=0.2"), (twofold, "seed=2,lr=0.2")):
        plan = Plan("s", Path("s"), told)
        for word in ("2", "lr-2-x", "lr-2", label):
            assert [run.index for run in pick(plan, [word])] == [2]
    assert [run.index for run in pick(plan, ["lr-0,2"])] == [0, 2]


def test_runs_of_equal_overrides_have_labels_of_their_own(make_sweep):
    runs = [
        replace(run, name=f"r{run.index}", signature=f"{run.index}a" * 32, overrides=("seed=1",))
        for run in make_sweep(runs=3).plan.runs
    ]
    plan = Plan("s", Path("s"), [*runs[:2], replace(runs[2], overrides=("seed=2",))])
    assert plan.labels == ["seed=1 (0a0a0a)", "seed=1 (1a1a1a)", "seed=2"]
    assert [run.index for run in pick(plan, ["seed=1 (0a0a0a)"])] == [0]
    with pytest.raises(UserError, match=r"^unknown run seed=1 in s"):
        pick(plan, ["seed=1"])


def test_a_run_whose_element_has_begun_is_starting(make_sweep, sweeps_command, monkeypatch):
    sweep = make_sweep(runs=1)
    sweep.hand_over()
    queue = Queue({"12_0": Element("RUNNING", None, "n1")})
    monkeypatch.setattr(states, "queue_of", lambda *_: queue)
    assert "pending" in (row := sweeps_command("status")[1].splitlines()[2])
    assert row.endswith("n1    starting (job 12_0)")


def test_the_end_of_an_empty_log_is_told_as_empty(make_sweep, sweeps_command):
    make_sweep(runs=1).record(0, State.FAILED, reason="killed by SIGKILL", log="")
    assert sweeps_command("status")[1].endswith("train.log:\n    (empty)\n")


def test_watch_ends_with_the_reasons_and_its_lines_stand_in_columns(make_sweep, sweeps_command):
    sweep = make_sweep(runs=2)
    sweep.record(0, State.OUT_OF_MEMORY, reason="MemoryError", step=3, total_steps=9)
    sweep.record(1, State.FAILED, reason="broken", step=3, total_steps=9)
    lines = sweeps_command("watch")[2].splitlines()
    assert lines[0].index("3/9") == lines[1].index("3/9")
    assert lines[3:] == ["  1 run out_of_memory: MemoryError", "  1 run failed: broken"]
