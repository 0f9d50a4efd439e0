from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer
from rundir import Diverged, OptsweepError, Preempted, Run, State, Superseded, read_status
from rundir.files import METRICS_FILE, iter_metrics
from trainer.checkpoints import (
    Keeper,
    best_steps,
    list_checkpoints,
    losses_of,
    newest_checkpoint,
    read_checkpoint,
)
from trainer.checkpoints.snapshot import HostCopy
from trainer.checkpoints.writer import Writer
from trainer.config import TrainConfig
from trainer.parallel import Ranks
from trainer.training import Training

Mapping = dict[str, Any]
Change = Callable[..., Mapping]

LOGGING = "logging__logging_params__"
UNSTEADY = {"name": "adamw", "lr": 3.0, "lr_schedule": "constant"}
"""With which the loss goes up and down."""
CPU = torch.device("cpu")


def training_of(config: Mapping) -> Training:
    return Training(TrainConfig.from_mapping(config), Ranks(0, 1, CPU))


def steps_kept(path: Path) -> list[int]:
    return sorted(step for step, _ in list_checkpoints(path / "checkpoints"))


def is_writing() -> bool:
    """Say whether this is the thread that writes checkpoints."""
    return threading.current_thread().name == "checkpoint"


def test_a_copy_is_of_the_moment_and_its_memory_is_used_again() -> None:
    weight, state = torch.arange(6.0).view(2, 3).T, {"step": torch.tensor(1.0), "name": "x"}
    live = {"tied": [weight, weight.detach()], "state": {0: state}, "pair": (1, None)}
    copy = HostCopy(CPU)
    first = copy.of(live)
    before = weight.clone()
    weight.add_(1)
    state["step"].add_(1)
    assert torch.equal(first["tied"][0], before)
    assert first["tied"][0].stride() == weight.stride()
    assert first["tied"][0] is first["tied"][1]
    assert (first["state"][0]["step"], first["pair"]) == (1.0, (1, None))
    second = copy.of(live)
    assert second["tied"][0].data_ptr() == first["tied"][0].data_ptr()
    assert torch.equal(second["tied"][0], weight)
    grown = copy.of({"new": torch.ones(2), **live})
    assert torch.equal(grown["tied"][0], weight)
    assert torch.equal(grown["new"], torch.ones(2))


def test_what_the_writing_raises_is_told_once() -> None:
    writer = Writer()

    def fail() -> None:
        raise OptsweepError("disk")

    writer.start(fail)
    writer.wait()
    assert str(writer.fault()) == "disk"
    assert writer.fault() is None


def test_what_the_writing_raises_while_somebody_asks_is_told_the_next_time() -> None:
    class Asked(Writer):
        """Its work fails as soon as :meth:`fault` has looked once."""

        looked = threading.Event()
        kept: BaseException | None = None

        @property
        def _error(self) -> BaseException | None:
            found = self.kept
            if threading.current_thread() is threading.main_thread() and not self.looked.is_set():
                self.looked.set()
                self.wait()
            return found

        @_error.setter
        def _error(self, error: BaseException | None) -> None:
            self.kept = error

    def fail() -> None:
        assert Asked.looked.wait(10)
        raise OptsweepError("disk")

    writer = Asked()
    writer.start(fail)
    assert writer.fault() is None
    assert str(writer.fault()) == "disk"


def test_training_goes_on_while_one_checkpoint_is_written_and_waits_for_it_before_the_next(
    tiny: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes until step 7 has begun; the checkpoint of step 4 holds step 4 all the same."""
    moved, taken, real, step = threading.Event(), [], os.fsync, Training.step

    def slow_disk(handle: int) -> None:
        assert not is_writing() or moved.wait(10)
        real(handle)

    def counted(self: Training, done: int) -> Any:
        taken.append((done, newest_checkpoint(tmp_path / "a" / "checkpoints")))
        if done == 7:
            moved.set()
        return step(self, done)

    monkeypatch.setattr(os, "fsync", slow_disk)
    monkeypatch.setattr(Training, "step", counted)
    with Run(tmp_path / "a", threads=1) as run:
        trainer.run(tiny, run)
    monkeypatch.undo()
    assert all(newest is None for done, newest in taken if done <= 7)
    assert all(newest is not None for done, newest in taken if done >= 8)
    reference = training_of(tiny)
    for done in range(8):
        reference.step(done)
    [_, (at, path)] = list_checkpoints(tmp_path / "a" / "checkpoints")
    assert at == 8
    saved = read_checkpoint(path)
    for name, weight in reference.model.state_dict().items():
        assert torch.equal(saved["model"][name], weight)


def test_a_last_checkpoint_that_fails_after_the_last_step_is_no_completed_run(
    tiny: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, real, is_full = Training.step, os.fsync, threading.Event()

    def last_step(self: Training, done: int) -> Any:
        if done == 11:
            for thread in threading.enumerate():
                if thread.name == "checkpoint":  # the one before is whole
                    thread.join()
            is_full.set()
        return step(self, done)

    def full_disk(handle: int) -> None:
        if is_full.is_set() and is_writing():
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(Training, "step", last_step)
    monkeypatch.setattr(os, "fsync", full_disk)
    said = r"step 12 can't be written: .*No space left on device; that of step 8 stays"
    with pytest.raises(OptsweepError, match=said), Run(tmp_path, threads=1) as run:
        trainer.run(tiny, run)
    assert read_status(tmp_path).state is State.FAILED


@pytest.mark.parametrize("background", [True, False])
def test_a_stop_right_after_a_checkpoint_waits_for_it_and_writes_no_second(
    tiny: Mapping,
    change: Change,
    tmp_path: Path,
    stopping_run: Callable[[Path, int], Run],
    background: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(tiny, **{f"{LOGGING}save_in_background": background})
    caplog.set_level("INFO")
    with pytest.raises(Preempted, match="at step 4 of 12"), stopping_run(tmp_path, 4) as run:
        trainer.run(tiny, run)
    assert steps_kept(tmp_path) == [4]
    assert newest_checkpoint(tmp_path / "checkpoints") is not None
    assert len([line for line in caplog.messages if line.startswith("step 4: saved")]) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]


def test_an_attempt_that_is_superseded_while_it_writes_gives_its_file_no_name(
    tiny: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, real = tmp_path / "claim", os.fsync

    def next_begins(handle: int) -> None:
        if is_writing():
            claim.touch()
        real(handle)

    run = Run(tmp_path / "run", threads=1, successor=claim)
    monkeypatch.setattr(os, "fsync", next_begins)
    with pytest.raises(Superseded), run:
        trainer.run(tiny, run)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_an_impatient_user_leaves_no_half_file_and_the_older_checkpoint(
    tiny: Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second Ctrl-C interrupts at once, here while the second checkpoint is written."""
    keepers, begun, going, real = [], threading.Event(), threading.Event(), Keeper._permit

    def permit(self: Keeper) -> None:
        if self._newest == 8:
            keepers.append(self)
            begun.set()
            assert going.wait(10)
        real(self)

    def interrupted(self: Keeper) -> None:
        if self._newest == 8 and begun.wait(10) and not going.is_set():
            threading.Timer(0.1, going.set).start()
            raise KeyboardInterrupt

    monkeypatch.setattr(Keeper, "_permit", permit)
    monkeypatch.setattr(Keeper, "fault", interrupted)
    with pytest.raises(KeyboardInterrupt), Run(tmp_path, threads=1) as run:
        trainer.run(tiny, run)
    assert keepers
    files = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert files == ["step-00000004.pt", "step-00000004.pt.sha256"]


def test_the_best_are_saved_when_they_are_found_and_stay(
    tiny: Mapping, change: Change, tmp_path: Path
) -> None:
    change(tiny, **{f"{LOGGING}keep_best": 2, f"{LOGGING}keep_last": 1, f"{LOGGING}val_step": 1})
    tiny["optimizer"]["optimizer_params"] = UNSTEADY
    with Run(tmp_path, threads=1) as run:
        trainer.run(tiny, run)
    records = iter_metrics(tmp_path / METRICS_FILE)
    losses = {r["step"]: r["loss"] for r in records if r["stream"] == "val"}
    best = sorted(losses, key=losses.__getitem__)[:2]
    assert max(best) < 11
    assert steps_kept(tmp_path) == sorted({*best, 12})
    assert losses_of(tmp_path / "checkpoints") == {at: losses[at] for at in {*best, 12}}


def test_a_loss_that_is_no_number_takes_no_place_among_the_best() -> None:
    losses = {1: 3.0, 2: float("nan"), 3: 2.0, 4: float("inf")}
    for order in permutations(losses):
        assert best_steps({step: losses[step] for step in order}, 2) == [3, 1]
    assert best_steps({2: float("nan")}, 1) == []


def test_a_resumed_run_knows_the_best_of_before(
    tiny: Mapping, change: Change, tmp_path: Path, stopping_run: Callable[[Path, int], Run]
) -> None:
    change(tiny, **{f"{LOGGING}keep_best": 1, f"{LOGGING}keep_last": 1, f"{LOGGING}val_step": 1})
    change(tiny, **{f"{LOGGING}save_ckpt_step": 0})
    tiny["optimizer"]["optimizer_params"] = UNSTEADY
    with Run(tmp_path / "a", threads=1) as run:
        trainer.run(tiny, run)
    with pytest.raises(Preempted), stopping_run(tmp_path / "b", 8) as run:
        trainer.run(tiny, run)
    with Run(tmp_path / "b", threads=1) as run:
        trainer.run(tiny, run)
    best = min(losses_of(tmp_path / "a" / "checkpoints").items(), key=lambda item: item[1])
    kept = losses_of(tmp_path / "b" / "checkpoints")
    assert min(kept.items(), key=lambda item: item[1]) == best


def test_other_data_under_a_checkpoint_is_said(
    tiny: Mapping,
    change: Change,
    tmp_path: Path,
    stopping_run: Callable[[Path, int], Run],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(Preempted), stopping_run(tmp_path, 5) as run:
        trainer.run(tiny, run)
    change(tiny, seed=7)
    with Run(tmp_path, threads=1) as run:
        trainer.run(tiny, run)
    said = "the checkpoint of step 5 is of data with seed = 42, now 7: other batches follow"
    assert said in caplog.messages


def test_what_may_change_the_last_bits_is_said(
    tiny: Mapping,
    tmp_path: Path,
    stopping_run: Callable[[Path, int], Run],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    with pytest.raises(Preempted), stopping_run(tmp_path, 5) as run:
        trainer.run(tiny, run)
    with pytest.raises(Preempted), stopping_run(tmp_path, 7) as run:
        trainer.run(tiny, run)
    assert not [message for message in caplog.messages if "last bits" in message]
    with Run(tmp_path, threads=2) as run:
        trainer.run(tiny, run)
    (said,) = (message for message in caplog.messages if "last bits" in message)
    assert said == "saved with threads 1, continued with 2: sums may have other last bits"


def test_other_settings_than_those_of_a_checkpoint_are_said(
    tiny: Mapping, change: Change, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Run(tmp_path, threads=1) as run:
        trainer.run(tiny, run)
    with Run(tmp_path, threads=1) as run:
        trainer.run(tiny, run)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    tiny["optimizer"]["optimizer_params"]["betas"] = (0.8, 0.99)
    change(tiny, training__training_params__gradnorm=0.5)
    with Run(tmp_path, threads=1) as run:
        trainer.run(tiny, run)
    was = "the checkpoint of step 12 was trained with "
    assert [message for message in caplog.messages if message.startswith(was)] == [
        f"{was}optimizer.betas = (0.95, 0.95), now (0.8, 0.99) from there on",
        f"{was}gradnorm = 1.0, now 0.5 from there on",
    ]


def test_files_of_the_same_length_with_another_text_are_said(
    tiny: Mapping,
    tmp_path: Path,
    stopping_run: Callable[[Path, int], Run],
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = tmp_path / "text.txt"
    tiny["data"]["dataset"] |= {"name": "text", "path": str(text)}
    text.write_text("To be, or not to be. " * 100)
    with pytest.raises(Preempted), stopping_run(tmp_path / "run", 5) as run:
        trainer.run(tiny, run)
    text.write_text("To do, or not to do. " * 100)
    with Run(tmp_path / "run", threads=1) as run:
        trainer.run(tiny, run)
    (said,) = (message for message in caplog.messages if "other batches follow" in message)
    assert said.startswith("the checkpoint of step 5 is of data with content = '")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_state_with_one_number_that_is_not_finite_is_not_saved(
    tiny: Mapping, tmp_path: Path, value: float
) -> None:
    training = training_of(tiny)
    training.step(0)
    weight = training.model.lm_head.weight
    training.optimizer.state[weight]["exp_avg"].view(-1)[1000] = value
    with (
        Run(tmp_path, threads=1) as run,
        pytest.raises(Diverged, match=r"^exp_avg of \S+ is not finite after step 1 of 12$"),
        Keeper(training, run) as keeper,
    ):
        keeper.save(1)
    assert steps_kept(tmp_path) == []
