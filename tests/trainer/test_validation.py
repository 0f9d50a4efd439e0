"""A validation that a stop cuts off: it ends between two batches, and the next attempt makes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer
from rundir import OptsweepError, Preempted, Run
from rundir.files import METRICS_FILE, iter_metrics
from trainer.checkpoints import files, list_checkpoints, losses_of
from trainer.training import Training

Mapping = dict[str, Any]
Change = Callable[..., Mapping]
Records = dict[tuple[str, int], float]

BATCHES = 10
"""Of a validation."""


@pytest.fixture
def long(tiny: Mapping, change: Change) -> Mapping:
    """As ``tiny``, with validations of BATCHES batches after steps 3, 6, 9 and 12."""
    return change(tiny, training__training_params__val_tokens_processed=BATCHES * 4 * 16)


@pytest.fixture
def stopped_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping, Path, int], int]:
    """Return a function that trains until so many batches are validated; it returns how many."""

    def train(config: Mapping, path: Path, batches: int) -> int:
        loss, passes = Training._loss, 0

        def counted(training: Training, forward: Any, batch: Any) -> torch.Tensor:
            nonlocal passes
            if not torch.is_grad_enabled():
                passes += 1
                if passes == batches:
                    run.request_stop("SIGUSR1")
            return loss(training, forward, batch)

        with monkeypatch.context() as patch:
            patch.setattr(Training, "_loss", counted)
            with pytest.raises(Preempted), Run(path, threads=1) as run:
                trainer.run(config, run)
        return passes

    return train


def trained(config: Mapping, path: Path) -> Records:
    """Train and return the losses on record; none is there twice."""
    with Run(path, threads=1) as run:
        trainer.run(config, run)
    found = [((r["stream"], r["step"]), r["loss"]) for r in iter_metrics(path / METRICS_FILE)]
    assert max(Counter(place for place, _ in found).values()) == 1
    return dict(found)


@pytest.mark.parametrize("name", ["adamw", "schedule-free-adamw"])
@pytest.mark.parametrize("step", [6, 12])
def test_a_stop_cuts_a_validation_off_and_the_run_goes_on_to_the_bit(
    long: Mapping,
    tmp_path: Path,
    stopped_after: Callable[[Mapping, Path, int], int],
    name: str,
    step: int,
) -> None:
    long["optimizer"]["optimizer_params"] = {"name": name, "lr": 0.01}
    undisturbed = trained(long, tmp_path / "a")
    upto = BATCHES * (step // 3 - 1) + 4
    assert stopped_after(long, tmp_path / "b", upto) == upto
    found = losses_of(tmp_path / "b" / "checkpoints")
    assert max(list_checkpoints(tmp_path / "b" / "checkpoints"))[0] == step
    assert step not in found
    assert trained(long, tmp_path / "b") == undisturbed
    assert losses_of(tmp_path / "b" / "checkpoints") == {12: undisturbed["val", 12]}


def test_one_that_is_cut_off_twice_is_still_made(
    long: Mapping, tmp_path: Path, stopped_after: Callable[[Mapping, Path, int], int]
) -> None:
    undisturbed = trained(long, tmp_path / "a")
    stopped_after(long, tmp_path / "b", BATCHES + 1)
    stopped_after(long, tmp_path / "b", 2)
    assert trained(long, tmp_path / "b") == undisturbed


def test_the_loss_that_was_made_up_for_counts_among_the_best(
    long: Mapping,
    change: Change,
    tmp_path: Path,
    stopped_after: Callable[[Mapping, Path, int], int],
) -> None:
    change(long, logging__logging_params__keep_best=1, logging__logging_params__keep_last=1)
    long["optimizer"]["optimizer_params"] = {"name": "adamw", "lr": 3.0, "lr_schedule": "constant"}
    undisturbed = trained(long, tmp_path / "a")
    best = min((loss, step) for (stream, step), loss in undisturbed.items() if stream == "val")[1]
    assert best < 12
    stopped_after(long, tmp_path / "b", BATCHES * (best // 3 - 1) + 1)
    assert trained(long, tmp_path / "b") == undisturbed
    assert losses_of(tmp_path / "b" / "checkpoints") == losses_of(tmp_path / "a" / "checkpoints")


def test_a_loss_that_the_disk_does_not_take_costs_no_checkpoint(
    long: Mapping,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped_after: Callable[[Mapping, Path, int], int],
) -> None:
    undisturbed = trained(long, tmp_path / "a")
    stopped_after(long, tmp_path / "b", BATCHES + 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_write_hash", full)
        with pytest.raises(OptsweepError) as error:
            trained(long, tmp_path / "b")
    assert str(error.value) == (
        "the validation loss of step 6 can't be written: [Errno 28] No space left on device"
    )
    with Run(tmp_path / "b", threads=1) as run:
        trainer.run(long, run)
    records = iter_metrics(tmp_path / "b" / METRICS_FILE)
    assert {(r["stream"], r["step"]): r["loss"] for r in records} == undisturbed
