"""Where runs stand, as ``status`` tells it from the records of a sweep."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rundir import ENDED, Run, State, Status
from rundir.files import write_status
from sweeps.cluster.scheduler import Element, Ending, Queue
from sweeps.follow import runrecords, states
from sweeps.follow.nodes import NodeRecord, by_node
from sweeps.follow.runrecords import Records
from sweeps.follow.selection import pick
from sweeps.planning.plan import Plan
from sweeps.records import claims, ledger
from sweeps.records.ledger import Share, Submission
from sweeps.records.owners import Owner, myself


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


ATTEMPTS = st.integers(0, 3)
RECORD = st.one_of(st.none(), st.tuples(st.sampled_from(sorted(State)), st.integers(1, 3)))


@given(claimed=ATTEMPTS, record=RECORD, is_alive=st.booleans(), is_handed=st.booleans())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_state_contradicts_the_records(
    dead, sweep_in, tmp_path_factory, claimed, record, is_alive, is_handed
):
    sweep = sweep_in(tmp_path_factory.mktemp("m"))
    run = sweep.plan.runs[0]
    for attempt in range(1, claimed + 1):
        owner = myself() if is_alive and attempt == claimed else dead
        claims.claim(sweep.plan.claims, "0", attempt, owner)
    if record is not None:
        sweep.plan.directory(run).mkdir(parents=True)
        write_status(sweep.plan.directory(run), Status(*record))
    if is_handed:
        sweep.hand_over("local")
    (found,) = states.survey(sweep.plan)
    latest = record is not None and record[1] >= claimed
    has_ended = latest and record is not None and record[0] in ENDED
    if found.state in ENDED - {State.LOST}:
        assert has_ended
        assert record is not None
        assert found.state is record[0]
    if has_ended:
        assert record is not None
        assert found.state is record[0]
        assert found.attempts == record[1]
    if found.state is State.RUNNING:
        assert claimed
        assert is_alive
    if claimed and is_alive and not has_ended:
        assert found.state is State.RUNNING
    assert found.is_wanted == (found.state not in {State.COMPLETED, State.DIVERGED, State.RUNNING})


def test_a_second_survey_reads_only_what_has_changed(make_sweep, monkeypatch):
    sweep = make_sweep(runs=3)
    for index in range(3):
        sweep.record(index, State.COMPLETED)
    records, read = Records(sweep.plan), []
    real = runrecords._read_status
    monkeypatch.setattr(runrecords, "_read_status", lambda path: read.append(path) or real(path))
    states.survey(sweep.plan, records=records)
    assert len(read) == 3
    sweep.record(1, State.FAILED, attempt=2)
    found = states.survey(sweep.plan, records=records)
    assert len(read) == 4
    assert [s.state for s in found] == [State.COMPLETED, State.FAILED, State.COMPLETED]


def test_a_survey_asks_once_a_submission_what_holds_for_all_its_runs(sweep_of_a_drain, monkeypatch):
    """Asked once a run, 10,000 notes and 1000 workers would make a status take seconds."""
    asked = []
    real = ledger.Entry.live_job
    monkeypatch.setattr(
        ledger.Entry, "live_job", lambda *of: asked.append("job") or real(*of), raising=True
    )
    reading = ledger.Submission.notes
    monkeypatch.setattr(
        ledger.Submission, "notes", lambda *of: asked.append("notes") or reading(*of)
    )
    waiting = states.survey(sweep_of_a_drain.plan, Queue({"12_7": Element("RUNNING")}))
    assert {s.job for s in waiting} == {"12_7"}
    assert asked == ["job"]
    handed_back = states.survey(sweep_of_a_drain.plan, Queue())
    assert {s.reason for s in handed_back} == {"not started: time is up"}
    assert asked == ["job", "job", "notes"]


def test_whether_a_drain_is_at_work_is_asked_once_for_all_its_workers(
    sweep_of_a_drain, monkeypatch
):
    asked = []
    real = ledger.Entry.live_job
    monkeypatch.setattr(ledger.Entry, "live_job", lambda *of: asked.append("job") or real(*of))
    sweep_of_a_drain.plan.claims.mkdir()
    (sweep_of_a_drain.plan.claims / "0.1").write_text("")
    assert states.survey(sweep_of_a_drain.plan, Queue())[0].state is State.LOST
    assert asked == ["job", "job"], "by the damaged claim, and by the runs not begun"


@pytest.fixture
def sweep_of_a_drain(make_sweep):
    """A sweep of 30 runs that 8 workers drain; one has left word."""
    sweep = make_sweep(runs=30)
    runs = tuple((run.index, 1) for run in sweep.plan.runs)
    drain = Submission("abc", Share("slurm", runs, 8, drain=True, threads=1), "hash", "/")
    drain.write(sweep.plan.home)
    drain.note(sweep.plan.home, ledger.Note.UNSTARTED, 3, "not started: time is up")
    ledger.record(sweep.plan.home, "job", "abc", job="12")
    return sweep


def test_a_note_is_about_the_run_of_the_element_that_left_it(make_sweep):
    sweep = make_sweep(runs=3)
    sweep.hand_over()
    (entry,) = ledger.entries(sweep.plan.home)
    entry.submission.note(sweep.plan.home, ledger.Note.UNSTARTED, 1, "not started: time is up")
    found = [s.reason for s in states.survey(sweep.plan, Queue(), accounting=lambda _: {})]
    gone = "job 12 ended before the run began"
    assert found == [gone, "not started: time is up", gone]


BROKEN = Ending(State.FAILED, "SLURM says FAILED (NonZeroExitCode) on n1", "n1")
TAKEN_AWAY = Ending(State.CANCELLED, "SLURM says CANCELLED on no node")


def seen(sweep, queue: Queue, accounting=lambda _: {}) -> list[tuple[State, str | None]]:
    found = states.survey(sweep.plan, queue, accounting=accounting)
    return [(state.state, state.reason) for state in found]


def test_runs_whose_workers_all_died_before_a_claim_have_the_workers_end(
    sweep_of_a_drain, sweeps_command, monkeypatch
):
    sweep = sweep_of_a_drain
    folder = sweep.plan.home / "submissions" / "abc"
    next(folder.glob("unstarted-*")).unlink()
    (folder / "12_1_0_log.out").write_text("module: not found\n")
    assert seen(sweep, Queue({"12_7": Element("RUNNING")}, {"12_1": BROKEN}))[0] == (
        State.PENDING,
        None,
    )
    queue = Queue({}, {"12_0": TAKEN_AWAY, "12_1": BROKEN, "12_2": TAKEN_AWAY})
    assert set(seen(sweep, queue)) == {(State.FAILED, BROKEN.reason)}
    told = seen(sweep, Queue(), lambda jobs: {"12_5": BROKEN} if jobs == {"12"} else {})
    assert set(told) == {(State.FAILED, BROKEN.reason)}, "asked of sacct once squeue has forgotten"
    monkeypatch.setattr(states, "queue_of", lambda *_: queue)
    code, out, _ = sweeps_command("status")
    assert code == 1
    assert "12_1_0_log.out:\n    module: not found" in out
    assert seen(sweep, Queue({}, {"12_3": TAKEN_AWAY}))[0] == (State.CANCELLED, TAKEN_AWAY.reason)


def test_a_resubmission_that_ends_before_the_run_begins_is_told_of_and_not_the_old_failure(
    make_sweep, sweeps_command, monkeypatch
):
    sweep = make_sweep(runs=2)
    sweep.record(0, State.FAILED, reason="RuntimeError: it broke", log="the old log\n")
    sweep.record(1, State.COMPLETED)
    sweep.hand_over(attempt=2)
    (sweep.plan.home / "submissions" / "abc" / "12_0_0_log.out").write_text("module: not found\n")
    gone = "attempt 2 (job 12_0) ended before the run began"
    done = (State.COMPLETED, None)
    assert seen(sweep, Queue()) == [(State.LOST, gone), done]
    told = f"{gone}: {BROKEN.reason}"
    queue = Queue({}, {"12_0": BROKEN})
    assert seen(sweep, queue) == [(State.FAILED, told), done]
    monkeypatch.setattr(states, "queue_of", lambda *_: queue)
    out = sweeps_command("status")[1]
    assert "it broke" not in out
    assert "12_0_0_log.out:\n    module: not found" in out


STOPPED = "not started: the worker was stopped by SIGTERM"


@pytest.mark.parametrize("made", [0, 1])
def test_a_run_that_its_worker_handed_back_ends_as_its_job_did_if_that_was_cancelled(
    make_sweep, sweeps_command, monkeypatch, made
):
    sweep = make_sweep(runs=2)
    if made:
        sweep.record(0, State.FAILED, reason="RuntimeError: it broke", log="the old log\n")
    sweep.record(1, State.COMPLETED)
    sweep.hand_over(attempt=made + 1)
    (entry,) = ledger.entries(sweep.plan.home)
    for element in range(2):
        entry.submission.note(sweep.plan.home, ledger.Note.UNSTARTED, element, STOPPED)
    (entry.submission.folder(sweep.plan.home) / "12_0_0_log.out").write_text("stopping\n")
    done = (State.COMPLETED, None)
    assert seen(sweep, Queue()) == [(State.PLANNED, STOPPED), done]
    assert seen(sweep, Queue({}, {"12_0": BROKEN})) == [(State.PLANNED, STOPPED), done]
    told = (State.CANCELLED, f"{TAKEN_AWAY.reason}; {STOPPED}")
    assert seen(sweep, Queue(), lambda _: {"12_0": TAKEN_AWAY}) == [told, done]
    monkeypatch.setattr(states, "queue_of", lambda *_: Queue({}, {"12_0": TAKEN_AWAY}))
    code, out, _ = sweeps_command("status")
    assert code == 1
    assert "broke" not in out
    assert "the old log" not in out


def test_one_dead_worker_of_a_drain_is_one_failure_and_its_last_end_is_that_of_the_rest(
    sweep_of_a_drain,
):
    """n1's worker fails at its start; n2's does ten runs until it is cancelled, or fails too."""
    sweep = sweep_of_a_drain
    next(sweep.plan.home.glob("submissions/abc/unstarted-*")).unlink()
    for index in range(10):
        sweep.record(index, State.COMPLETED, node="n2")
    early, late = (replace(BROKEN, at=f"2026-01-02T03:0{minute}:05") for minute in (4, 9))
    cancelled = Ending(State.CANCELLED, "SLURM says CANCELLED on n2", "n2", late.at)
    found = states.survey(sweep.plan, Queue({}, {"12_0": early, "12_1": cancelled}))
    assert {s.state for s in found[10:]} == {State.CANCELLED}
    assert by_node(found) == []
    both = states.survey(sweep.plan, Queue({}, {"12_0": early, "12_1": replace(late, node="n2")}))
    assert {(s.state, s.node) for s in both[10:]} == {(State.FAILED, "n2")}
    assert by_node(both) == [NodeRecord("n2", 1, 11, is_suspicious=False)]


def test_unbegun_runs_of_a_drain_that_was_cancelled_are_cancelled(sweep_of_a_drain):
    found = set(seen(sweep_of_a_drain, Queue({}, {"12_3": TAKEN_AWAY})))
    assert found == {(State.CANCELLED, f"{TAKEN_AWAY.reason}; not started: time is up")}


def test_a_plain_scancel_is_told_in_slurms_words(make_sweep):
    sweep = make_sweep(runs=3)
    denied = "stopped by SIGTERM at step 3; not requeued: SLURM ends the job itself"
    sweep.record(0, State.PREEMPTED, reason=denied, job="12_0")
    sweep.record(1, State.COMPLETED)
    sweep.hand_over()
    assert seen(sweep, Queue())[0] == (State.PREEMPTED, denied)
    found = seen(sweep, Queue({}, dict.fromkeys(("12_0", "12_1", "12_2"), TAKEN_AWAY)))
    assert found == [
        (State.CANCELLED, f"{TAKEN_AWAY.reason}; stopped by SIGTERM at step 3"),
        (State.COMPLETED, None),
        (State.CANCELLED, TAKEN_AWAY.reason),
    ]


def test_a_run_that_goes_on_is_not_said_to_be_not_requeued(make_sweep):
    sweep = make_sweep(runs=1)
    sweep.record(0, State.PREEMPTED, reason="SIGTERM; not requeued: SLURM ends it", job="12_0")
    sweep.hand_over()
    queue = Queue({"12_0": Element("PENDING", "BeginTime")})
    assert seen(sweep, queue) == [(State.PENDING, "BeginTime; goes on after preempted: SIGTERM")]


@pytest.mark.parametrize("state", [State.PREEMPTED, State.FAILED])
def test_an_interrupted_run_is_not_over_while_slurm_cleans_up_after_its_job(make_sweep, state):
    sweep = make_sweep(runs=1)
    sweep.record(0, state, reason="SIGTERM", job="12_0")
    sweep.hand_over()
    (found,) = states.survey(sweep.plan, Queue({"12_0": Element("COMPLETING")}))
    assert (found.state, found.is_open) == (state, state is State.PREEMPTED)
    (found,) = states.survey(sweep.plan, Queue(), accounting=lambda _: {})
    assert (found.state, found.is_open) == (state, False)


def test_a_submission_that_slurm_refused_or_did_not_answer_tells_why_its_runs_wait(make_sweep):
    sweep = make_sweep(runs=2)
    sweep.record(0, State.FAILED, reason="it broke")
    sweep.hand_over(answer="refused", attempt=2, reason="Invalid qos")
    assert seen(sweep, Queue()) == [
        (State.FAILED, "it broke; attempt 2: not submitted: Invalid qos"),
        (State.PLANNED, "not submitted: Invalid qos"),
    ]
    sweep.hand_over(answer="intent", attempt=2, name="later")
    unknown = "SLURM has not said whether it took it; launching again looks that up"
    assert seen(sweep, Queue())[1] == (State.PLANNED, unknown)
    sweep.hand_over(job="13", attempt=2, name="third")
    assert seen(sweep, Queue({"13_1": Element("RUNNING")}))[1] == (State.PENDING, None)


def test_a_run_is_named_by_index_name_label_or_the_beginning_of_its_name(make_sweep):
    runs = [replace(run, name=f"lr-{run.index}-x") for run in make_sweep(runs=3).plan.runs]
    twofold = [replace(run, overrides=(f"seed={run.index}", f"lr=0.{run.index}")) for run in runs]
    for told, label in ((runs, "seed=2"), (twofold, "seed=2, lr=0.2"), (twofold, "seed=2,lr=0.2")):
        plan = Plan("s", Path("s"), told)
        for word in ("2", "lr-2-x", "lr-2", label):
            assert [run.index for run in pick(plan, [word])] == [2]
    assert [run.index for run in pick(plan, ["lr-0,2"])] == [0, 2]


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
