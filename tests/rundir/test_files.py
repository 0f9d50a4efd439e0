import math
import os

import pytest

from rundir import State, Status, files
from rundir.files import iter_metrics, locked, open_for_append, replacing


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"new, but")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"


def test_a_lock_names_its_holder_and_is_given_back(tmp_path):
    with locked(tmp_path / "lock") as mine:
        assert mine is None
        with locked(tmp_path / "lock") as holder:
            assert holder == f"process {os.getpid()} on {os.uname().nodename}"
    with locked(tmp_path / "lock") as mine:
        assert mine is None


def test_status_reads_back_as_it_was_written(tmp_path):
    status = Status(State.FAILED, 3, step=7, figures={"loss": math.inf}, reason="because")
    files.write_status(tmp_path, status)
    assert files.read_status(tmp_path) == status


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"state": "gone"}',
        '{"state": "failed", "step"',
        '{"state": "failed", "earlier": 5}',
        '{"state": "failed", "earlier": {"n1": 5}}',
        '{"state": "failed", "attempt": "1"}',
    ],
)
def test_a_damaged_status_reads_as_none(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    assert files.read_status(tmp_path) is None


def test_appending_after_a_torn_line_leaves_it_alone_on_its_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    handle = open_for_append(path)
    os.write(handle, b'{"step": 3, "loss": NaN}\n')
    os.close(handle)
    assert [record["step"] for record in iter_metrics(path)] == [1, 3]
