"""Where each run stands, by its own record, what was handed over, and how jobs ended."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rundir import ENDED, State, Status
from rundir.files import write_status
from sweeps.cluster.scheduler import Element, Ending, Queue
from sweeps.follow import runrecords, states
from sweeps.follow.nodes import NodeRecord, by_node
from sweeps.follow.runrecords import Records
from sweeps.records import claims, ledger
from sweeps.records.ledger import Share, Submission
from sweeps.records.owners import myself

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
