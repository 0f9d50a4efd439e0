from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from rundir import UserError
from trainer.checkpoints.files import (
    FORMAT,
    Kept,
    _HashedFile,
    list_checkpoints,
    losses_of,
    newest_checkpoint,
    read_checkpoint,
    remove_unfinished,
    save_checkpoint,
)


def state_of(step: int) -> dict[str, object]:
    keys = ("model_config", "optimizer_name", "model", "optimizer", "rng")
    return {**dict.fromkeys(keys), "step": step, "w": torch.full((100,), step)}


def save(directory: Path, *steps: int, keep_last: int = 3) -> None:
    for step in steps:
        save_checkpoint(directory, step, state_of(step), Kept(keep_last))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class Full:
    """A file on a full disk."""

    def write(self, _: bytes) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        pass


def loaded_step(directory: Path) -> int | None:
    path = newest_checkpoint(directory)
    return None if path is None else int(read_checkpoint(path)["step"])


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, 7)
    path = newest_checkpoint(tmp_path)
    assert path is not None
    assert torch.equal(read_checkpoint(path)["w"], torch.full((100,), 7))


def test_the_newest_is_loaded_and_the_oldest_dropped(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, 30, keep_last=2)
    assert loaded_step(tmp_path) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000020.pt",
        "step-00000020.pt.sha256",
        "step-00000030.pt",
        "step-00000030.pt.sha256",
    ]


def test_no_directory_and_no_checkpoint_load_nothing(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("kept_bytes", [0, 1, 500, -1])
def test_a_torn_newest_falls_back_to_the_one_before(
    tmp_path: Path, kept_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 10, 20)
    newest = tmp_path / "step-00000020.pt"
    newest.write_bytes(newest.read_bytes()[:kept_bytes])
    assert loaded_step(tmp_path) == 10
    assert caplog.messages == [
        (
            "checkpoint step-00000020.pt is not usable (its hash does not match); "
            "looking for an older one"
        )
    ]


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    newest = tmp_path / "step-00000020.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert loaded_step(tmp_path) == 10


def test_a_file_whose_hash_was_never_written_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    (tmp_path / "step-00000020.pt.sha256").unlink()
    assert loaded_step(tmp_path) == 10


def test_a_failed_write_leaves_the_older_one_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 10)
    before = sorted(tmp_path.iterdir())

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 20)
    assert sorted(tmp_path.iterdir()) == before
    assert loaded_step(tmp_path) == 10


@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_a_disk_that_fills_up_while_tensors_are_written_is_an_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    save(tmp_path, 10)
    before = sorted(tmp_path.iterdir())
    writing = _HashedFile.write
    written = 0

    def write(file: _HashedFile, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if written > room:
            monkeypatch.setattr(file, "_file", Full())
        return writing(file, data)

    monkeypatch.setattr(_HashedFile, "write", write)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 20, {"w": torch.ones(100_000)}, Kept())
    assert sorted(tmp_path.iterdir()) == before
    assert loaded_step(tmp_path) == 10


def test_a_torn_file_of_a_later_step_displaces_no_good_one(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    (tmp_path / "step-00000020.pt").write_bytes(b"torn")
    save(tmp_path, 15, keep_last=2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [20, 15, 10]


def test_the_hash_file_is_what_sha256sum_reads(tmp_path: Path) -> None:
    save(tmp_path, 10)
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "step-00000010.pt.sha256"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.stdout == "step-00000010.pt: OK\n"


def test_a_validation_loss_is_on_record_beside_the_hash(tmp_path: Path) -> None:
    for step, loss in ((10, 1.25), (20, None), (30, 0.1 + 0.2)):
        save_checkpoint(tmp_path, step, state_of(step), Kept(last=3), loss=loss)
    assert losses_of(tmp_path) == {10: 1.25, 30: 0.1 + 0.2}
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "step-00000010.pt.sha256"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.stdout, checked.stderr) == ("step-00000010.pt: OK\n", "")


def test_the_best_stay_besides_the_newest(tmp_path: Path) -> None:
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: 1.0, 50: 4.0}
    for step, loss in losses.items():
        save_checkpoint(tmp_path, step, state_of(step), Kept(last=1, best=2), loss=loss)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [50, 40, 20]
    save_checkpoint(tmp_path, 60, state_of(60), Kept(last=1, best=1))
    assert [step for step, _ in list_checkpoints(tmp_path)] == [60, 20]


def test_one_that_was_never_finished_takes_no_good_ones_place(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    (tmp_path / "step-00000020.pt.sha256").unlink()
    save(tmp_path, 30, keep_last=2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [30, 10]


def test_what_killed_attempts_left_unfinished_goes_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 10)
    kept = names(tmp_path)
    for name in (".step-00000020.pt.x2_ab", ".step-00000010.pt.sha256.q9"):
        (tmp_path / name).write_bytes(b"torn")
    (tmp_path / ".mine").touch()
    remove_unfinished(tmp_path)
    remove_unfinished(tmp_path / "absent")
    assert names(tmp_path) == [".mine", *kept]


@pytest.mark.parametrize(
    ("present", "left"),
    [
        pytest.param([], [], id="in the middle of the file"),
        pytest.param(["20.pt"], ["20.pt"], id="before its hash appears"),
        pytest.param(["20.pt", "20.pt.sha256"], ["20.pt", "20.pt.sha256"], id="before an old goes"),
    ],
)
def test_nothing_more_is_written_once_it_is_forbidden(
    tmp_path: Path, present: list[str], left: list[str]
) -> None:
    save(tmp_path, 10)
    before = names(tmp_path)
    new = {f"step-000000{name}" for name in present}

    def permit() -> None:
        if new <= set(names(tmp_path)):
            raise PermissionError("superseded")

    with pytest.raises(PermissionError):
        save_checkpoint(tmp_path, 20, state_of(20), Kept(last=1), permit=permit)
    assert names(tmp_path) == [*before, *(f"step-000000{name}" for name in left)]
    assert loaded_step(tmp_path) == (20 if len(left) == 2 else 10)


@pytest.mark.parametrize("content", [{"step": 1}, [1], "text"], ids=str)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "step-00000001.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=r"step-00000001\.pt is no checkpoint of a run; move it"):
        read_checkpoint(path)
    path.write_bytes(b"not even torch's")
    with pytest.raises(UserError, match=r"step-00000001\.pt is no checkpoint of a run; move it"):
        read_checkpoint(path)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pt"
    torch.save({**state_of(1), "w": Kept()}, path)
    with pytest.raises(UserError, match="is no checkpoint of a run"):
        read_checkpoint(path)


def test_a_later_format_is_refused_and_earlier_ones_are_read(tmp_path: Path) -> None:
    save(tmp_path, 10)
    assert loaded_step(tmp_path) == 10
    later = {**state_of(20), "format": FORMAT + 1}
    path = save_checkpoint(tmp_path, 20, later, Kept())
    with pytest.raises(UserError, match=rf"has format {FORMAT + 1}; must be at most {FORMAT}"):
        read_checkpoint(path)
