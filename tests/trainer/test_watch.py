"""Losses and gradients that are not finite: what ends, what is skipped, what is never saved."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer
from rundir import Diverged, Preempted, Run, State, read_status
from rundir.files import METRICS_FILE, iter_metrics
from trainer import TrainConfig, TrainingParams, training
from trainer.checkpoints import Kept, list_checkpoints, read_checkpoint, save_checkpoint
from trainer.compute.throughput import Pace
from trainer.optim.params import REGISTRY
from trainer.parallel import Ranks
from trainer.training import Training, Update
from trainer.watch import UNREAD, Watch

Mapping = dict[str, Any]
Change = Callable[..., Mapping]
Stopping = Callable[[Path, int], Run]
Poison = Callable[..., None]

PARAMS = "training__training_params__"
LOGGING = "logging__logging_params__"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Return a function that makes gradient or loss of some steps, counted from 1, not finite."""

    def ruin(steps: Collection[int], *, loss: bool = False, value: float = math.nan) -> None:
        step, clip, mean = Training.step, Training._clip, Ranks.mean
        at = [0]

        def counted(self: Training, done: int) -> Any:
            at[0] = done + 1
            return step(self, done)

        def clipped(self: Training, limit: float) -> torch.Tensor:
            gradient = next(self.model.parameters()).grad
            if at[0] in steps and not loss and gradient is not None:
                gradient.view(-1)[3] = value
            return clip(self, limit)

        def averaged(self: Ranks, values: torch.Tensor) -> torch.Tensor:
            return mean(self, values) + (value if at[0] in steps and loss else 0.0)

        monkeypatch.setattr(Training, "step", counted)
        monkeypatch.setattr(Training, "_clip", clipped)
        monkeypatch.setattr(Ranks, "mean", averaged)

    return ruin


@pytest.fixture
def _costly_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read on the CPU as seldom as on a GPU."""
    begin = Training.__init__

    def begun(self: Training, config: TrainConfig, ranks: Ranks) -> None:
        begin(self, config, ranks)
        self.reads_are_free = False
        self.watch = Watch(config.training, self.total_steps, reads_are_free=False)

    monkeypatch.setattr(Training, "__init__", begun)


def records(path: Path) -> list[Mapping]:
    return [r for r in iter_metrics(path / METRICS_FILE) if r["stream"] == "train"]


def trained(config: Mapping, path: Path) -> list[float]:
    with Run(path, threads=1) as run:
        trainer.run(config, run)
    return [record["loss"] for record in records(path)]


def diverged(config: Mapping, path: Path) -> str:
    with pytest.raises(Diverged) as caught:
        trained(config, path)
    status = read_status(path)
    assert status is not None
    assert (status.state, status.reason) == (State.DIVERGED, str(caught.value))
    return str(caught.value)


def saved_steps(path: Path) -> list[int]:
    """Return the steps of the checkpoints, having seen that all that they hold is finite."""
    found = list_checkpoints(path / "checkpoints")
    for _, file in found:
        state = read_checkpoint(file)
        kept = [*state["model"].values()]
        for each in state["optimizer"]["state"].values():
            kept += [part for part in each.values() if isinstance(part, torch.Tensor)]
        assert all(part.isfinite().all() for part in kept)
    return sorted(step for step, _ in found)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_ends_the_run_at_its_step(
    tiny: Mapping, tmp_path: Path, poison: Poison, value: float
) -> None:
    poison([6], value=value)
    shown = abs(value)
    assert diverged(tiny, tmp_path) == f"gradient norm is {shown} at step 6 of 12"
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert saved_steps(tmp_path) == [4]


def test_a_loss_that_is_not_finite_does_the_same_though_its_gradient_is(
    tiny: Mapping, tmp_path: Path, poison: Poison
) -> None:
    poison([6], loss=True)
    assert diverged(tiny, tmp_path) == "loss is nan at step 6 of 12"
    assert saved_steps(tmp_path) == [4]


@pytest.mark.usefixtures("_costly_reads")
@pytest.mark.parametrize("name", ["adamw", "scion", "momo", "sign-gd"])
def test_where_reads_wait_the_step_is_known_later_and_nothing_ruined_is_saved(
    tiny: Mapping, change: Change, tmp_path: Path, poison: Poison, name: str
) -> None:
    poison([5])
    change(tiny, **{f"{LOGGING}log_step": 100, f"{LOGGING}val_step": 100})
    tiny["optimizer"]["optimizer_params"] = {"name": name, "lr": 0.01}
    assert diverged(tiny, tmp_path) == "gradient norm is nan at step 5 of 12"
    assert saved_steps(tmp_path) == [4]


@pytest.mark.usefixtures("_costly_reads")
def test_a_stop_between_ruin_and_its_discovery_saves_nothing_either(
    tiny: Mapping,
    change: Change,
    tmp_path: Path,
    poison: Poison,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison([2])
    change(tiny, **{f"{LOGGING}log_step": 100, f"{LOGGING}val_step": 100})
    run, step = Run(tmp_path, threads=1), Training.step

    def stopped(self: Training, done: int) -> Any:
        if done == 2:
            run.request_stop("SIGTERM")
        return step(self, done)

    monkeypatch.setattr(Training, "step", stopped)
    with pytest.raises(Diverged, match="gradient norm is nan at step 2 of 12"), run:
        trainer.run(tiny, run)
    assert saved_steps(tmp_path) == []


def test_weights_that_overflow_are_not_saved(tiny: Mapping, change: Change, tmp_path: Path) -> None:
    tiny["optimizer"]["optimizer_params"] = {"name": "sgd", "lr": 1e39}
    change(tiny, **{f"{LOGGING}save_ckpt_step": 1, f"{LOGGING}val_step": 100})
    said = diverged(tiny, tmp_path)
    assert said == "embed_tokens.weight is not finite after step 1 of 12"
    assert saved_steps(tmp_path) == []


def begun(config: Mapping) -> Training:
    return Training(TrainConfig.from_mapping(config), Ranks(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_skipped_step_leaves_weights_and_state_to_the_bit(
    tiny: Mapping, change: Change, poison: Poison, name: str
) -> None:
    tiny["optimizer"]["optimizer_params"] = {"name": name, "lr": 0.01}
    change(tiny, **{f"{PARAMS}non_finite": "skip"})
    poison([3])
    poison([4], loss=True)
    with_it, without = begun(tiny), begun(tiny)
    for step in (0, 1):
        with_it.step(step)
        without.step(step)
    before = copy.deepcopy((with_it.model.state_dict(), with_it.optimizer.state_dict()["state"]))
    for step in (2, 3):
        with_it.step(step)
        after = with_it.model.state_dict(), with_it.optimizer.state_dict()["state"]
        torch.testing.assert_close(after, before, rtol=0, atol=0)
    for step in (4, 5):
        with_it.step(step)
        without.step(step)
    for ours, expected in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_skipped_steps_are_counted_recorded_and_said(
    tiny: Mapping,
    change: Change,
    tmp_path: Path,
    poison: Poison,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(tiny, **{f"{PARAMS}non_finite": "skip", f"{PARAMS}max_skipped_steps": 2})
    poison([3, 5, 6, 9])
    losses = trained(tiny, tmp_path)
    assert all(map(math.isfinite, losses))
    counts = [record["skipped_steps"] for record in records(tmp_path)]
    assert counts == [0, 0, 1, 1, 2, 3, 3, 3, 4, 4, 4, 4]
    warnings = [r.getMessage() for r in caplog.records if r.name == "trainer.watch"]
    assert warnings[1] == "gradient norm is nan at step 5 of 12: step skipped, 2 so far"
    assert saved_steps(tmp_path) == [8, 12]


def test_too_many_in_a_row_end_the_run(
    tiny: Mapping, change: Change, tmp_path: Path, poison: Poison
) -> None:
    change(tiny, **{f"{PARAMS}non_finite": "skip", f"{PARAMS}max_skipped_steps": 2})
    poison([2, 6, 7, 8], loss=True)
    said = diverged(tiny, tmp_path)
    assert said == "loss is nan at step 8 of 12, the last of 3 such steps in a row"
    assert records(tmp_path)[-1]["skipped_steps"] == 4
    assert saved_steps(tmp_path) == [4]


def test_without_anything_to_skip_the_curve_is_the_same(
    tiny: Mapping, change: Change, tmp_path: Path
) -> None:
    plain = trained(tiny, tmp_path / "a")
    assert "skipped_steps" not in records(tmp_path / "a")[0]
    skipping = trained(change(tiny, **{f"{PARAMS}non_finite": "skip"}), tmp_path / "b")
    assert skipping == plain


def test_the_count_goes_on_after_an_interruption(
    tiny: Mapping, change: Change, tmp_path: Path, poison: Poison, stopping_run: Stopping
) -> None:
    change(tiny, **{f"{PARAMS}non_finite": "skip", f"{PARAMS}max_skipped_steps": 2})
    poison([5, 6, 7])
    assert "step 7 of 12, the last of 3 " in diverged(tiny, tmp_path / "a")
    with pytest.raises(Preempted), stopping_run(tmp_path / "b", 6) as run:
        trainer.run(tiny, run)
    assert "step 7 of 12, the last of 3 " in diverged(tiny, tmp_path / "b")
    assert records(tmp_path / "b")[-1]["skipped_steps"] == 3


def test_a_checkpoint_from_before_there_were_groups_continues_to_the_bit(
    tiny: Mapping, tmp_path: Path, stopping_run: Stopping
) -> None:
    undisturbed = trained(tiny, tmp_path / "a")
    path = tmp_path / "b"
    with pytest.raises(Preempted), stopping_run(path, 6) as run:
        trainer.run(tiny, run)
    [(step, file), *_] = list_checkpoints(path / "checkpoints")
    state = read_checkpoint(file)
    for key in ("format", "world_size", "optimizer_groups", "data", "skipped_steps"):
        del state[key]
    save_checkpoint(path / "checkpoints", step, state, Kept())
    assert trained(tiny, path) == undisturbed


def test_where_reads_wait_none_happens_until_somebody_asks() -> None:
    watch = Watch(TrainingParams(), 1000, reads_are_free=False)
    unreadable = torch.ones((), device="meta")
    for step in range(1, UNREAD):
        assert watch.lets_pass(step, unreadable, unreadable)
    with pytest.raises((NotImplementedError, RuntimeError)):
        watch.fault()


@pytest.mark.usefixtures("_costly_reads")
def test_the_clock_runs_until_the_device_is_done_before_a_checkpoint(
    tiny: Mapping, change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(tiny, **{f"{LOGGING}log_step": 5, f"{LOGGING}save_ckpt_step": 4})
    watches: list[Watch] = []
    unread: list[int] = []
    step, paused = Training.step, Pace.paused

    def watched(self: Training, done: int) -> Update:
        watches.append(self.watch)
        return step(self, done)

    def noted(self: Pace) -> AbstractContextManager[None]:
        unread.append(len(watches[-1]._unread))
        return paused(self)

    monkeypatch.setattr(Training, "step", watched)
    monkeypatch.setattr(Pace, "paused", noted)
    trained(tiny, tmp_path)
    assert saved_steps(tmp_path) == [8, 12]
    assert len(unread) == 7  # four validations, three checkpoints
    assert not any(unread)


def test_what_waits_on_the_device_is_bounded() -> None:
    watch = Watch(TrainingParams(), 1000, reads_are_free=False)
    fine, bad = torch.tensor(1.0), torch.tensor(math.inf)
    for step in range(1, 3 * UNREAD):
        assert watch.lets_pass(step, fine, bad if step == UNREAD + 7 else fine)
        assert len(watch._unread) < UNREAD
    assert watch.fault() == f"gradient norm is inf at step {UNREAD + 7} of 1000"
    assert training.Watch is Watch
