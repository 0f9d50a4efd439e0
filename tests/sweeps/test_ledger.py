import json
import os

import pytest

from rundir import UserError
from sweeps.records import ledger, owners
from sweeps.records.ledger import Share, Submission


@pytest.fixture
def submission():
    return Submission("ab12", Share("slurm", ((0, 1), (1, 3)), 2, drain=False, threads=1), "c", "/")


def test_a_submission_reads_back_as_it_was_written(submission, tmp_path):
    submission.write(tmp_path)
    assert Submission.read(tmp_path, "ab12") == submission
    assert Submission.read(tmp_path, "other") is None


def test_an_intent_without_an_answer_is_known(submission, tmp_path):
    submission.write(tmp_path)
    ledger.record(tmp_path, "intent", "ab12")
    assert [(e.submission.id, e.answer, e.job) for e in ledger.entries(tmp_path)] == [
        ("ab12", None, None)
    ]
    ledger.record(tmp_path, "job", "ab12", job="77")
    assert [(e.answer, e.job) for e in ledger.entries(tmp_path)] == [("job", "77")]


def test_a_torn_last_line_is_passed_over(submission, tmp_path):
    submission.write(tmp_path)
    ledger.record(tmp_path, "intent", "ab12")
    with (tmp_path / ledger.LEDGER_FILE).open("a") as file:
        file.write('{"event": "job", "subm')
    assert [e.answer for e in ledger.entries(tmp_path)] == [None]
    ledger.record(tmp_path, "job", "ab12", job="77")
    assert [e.job for e in ledger.entries(tmp_path)] == ["77"]


@pytest.mark.parametrize("text", ["", "{}", None])
def test_a_submission_whose_record_is_damaged_stays_in_the_ledger(submission, tmp_path, text):
    submission.write(tmp_path)
    ledger.record(tmp_path, "job", "ab12", job="77")
    record = submission.folder(tmp_path) / ledger.SUBMISSION_FILE
    record.unlink() if text is None else record.write_text(text)
    (entry,) = ledger.entries(tmp_path)
    assert (entry.submission.id, entry.job, entry.is_damaged) == ("ab12", "77", True)
    assert ledger.damage(tmp_path, [entry]) == [
        f"{record} can't be read; which runs job 77 was to do is not known"
    ]


def test_a_launch_warns_of_it_and_goes_on(shell, toy):
    shell("launch", "-m", *toy, "paths.sweep=s", "seed=1")
    (file,) = shell.find(ledger.SUBMISSION_FILE)
    file.write_text("{")
    done = shell("launch", "-m", *toy, "paths.sweep=s", "seed=1,2")
    assert "submission.json can't be read; which runs it was to do is not known" in done.stderr
    assert [run["state"] for run in shell.status("s")] == ["completed"] * 2


def test_element_i_gets_to_run_i_and_a_draining_one_to_any(submission, tmp_path):
    entry = ledger.Entry(submission, "job", "77")
    assert entry.live_job(1, {"77_1": ...}) == "77_1"
    assert entry.live_job(0, {"77_1": ...}) is None
    drain = Submission("ab12", Share("slurm", ((0, 1), (1, 3)), 2, drain=True, threads=1), "c", "/")
    assert ledger.Entry(drain, "job", "77").live_job(0, {"77_1": ...}) == "77_1"
    assert ledger.Entry(submission, "job", "77").live_job(0, None) is None


def test_a_local_submission_lives_as_long_as_one_of_its_processes(submission):
    me = owners.myself()
    gone = owners.Owner(me.host, me.boot, me.pid, me.started + 1)
    assert ledger.Entry(submission, "job", None, (gone, me)).live_job(0, None)
    assert ledger.Entry(submission, "job", None, (gone,)).live_job(0, None) is None


def test_the_lock_is_given_back(tmp_path):
    with (
        ledger.locked(tmp_path, "s"),
        pytest.raises(UserError, match=f"by process {os.getpid()}"),
        ledger.locked(tmp_path, "s"),
    ):
        pass
    with ledger.locked(tmp_path, "s"):
        pass


def test_promise_10_runs_that_differ_where_their_names_do_not_have_directories_of_their_own(
    shell, toy
):
    for steps in (3, 4):
        more = (
            "paths.sweep=s",
            "paths.run_name=mine",
            f"training.training_params.max_steps={steps}",
        )
        shell("launch", "-m", *toy, *more)
    runs = sorted(shell.cwd.glob("multirun/s/*/*/*/*"), key=str)
    runs = [run for run in runs if ".sweep" not in run.parts]
    signatures = [json.loads((run / "run.json").read_text())["signature"] for run in runs]
    assert len(set(signatures)) == 2
    assert [run.name for run in runs] == [f"mine-{signature[:6]}" for signature in signatures]
