from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from trainer.checkpoint import (
    _HashedFile,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)


def save(directory: Path, *steps: int, keep_last: int = 3) -> None:
    for step in steps:
        save_checkpoint(directory, step, {"step": step, "w": torch.full((100,), step)}, keep_last)


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
        save_checkpoint(tmp_path, 20, {"w": torch.ones(100_000)}, keep_last=3)
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
