"""What the loop hands to an optimizer whose step depends on the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer
from rundir import Diverged, Preempted, Run
from rundir.files import METRICS_FILE, iter_metrics
from trainer import training
from trainer.optim import build_optimizer

Mapping = dict[str, Any]
Change = Callable[..., Mapping]
NAMES = ("momo", "momo-star", "momo-adam", "momo-adam-star")


def records(config: Mapping, path: Path) -> list[dict[str, Any]]:
    with Run(path, threads=1) as run:
        trainer.run(config, run)
    return [r for r in iter_metrics(path / METRICS_FILE) if r["stream"] == "train"]


def losses(config: Mapping, path: Path) -> list[float]:
    return [record["loss"] for record in records(config, path)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [2, 8])
def test_the_step_sees_the_mean_loss_over_its_micro_batches(
    tiny: Mapping,
    change: Change,
    name: str,
    batch_size: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[Any] = []

    def build(*arguments: Any) -> Any:
        built.append(build_optimizer(*arguments))
        return built[-1]

    monkeypatch.setattr(training, "build_optimizer", build)
    change(tiny, training__training_params__batch_size=batch_size)
    tiny["optimizer"]["optimizer_params"] = {"name": name, "lr": 0.1, "lb": 5.0}
    seen = losses(tiny, tmp_path)
    beta = 0.95 if "adam" in name else 0.9
    expected = 0.0 if "adam" in name else seen[0]
    for loss in seen:
        expected = beta * expected + (1 - beta) * loss
    [optimizer] = built
    assert optimizer.state["model"]["loss_avg"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_accumulating_micro_batches_changes_only_rounding(
    tiny: Mapping, change: Change, name: str, tmp_path: Path
) -> None:
    tiny["optimizer"]["optimizer_params"] = {"name": name, "lr": 0.03, "lb": 5.0}
    accumulated = losses(tiny, tmp_path / "a")
    whole = losses(change(tiny, training__training_params__batch_size=8), tmp_path / "b")
    assert whole == pytest.approx(accumulated, rel=1e-4)


def test_a_bound_above_the_loss_stops_the_weights(tiny: Mapping, tmp_path: Path) -> None:
    tiny["optimizer"]["optimizer_params"] = {"name": "momo", "lr": 1.0, "lb": 100.0}
    found = records(tiny, tmp_path)
    assert [record["loss"] for record in found] == pytest.approx([math.log(256)] * 12, abs=0.05)
    assert [record["step_size"] for record in found] == [0.0] * 12


@pytest.mark.parametrize(
    "values",
    [
        {"name": "momo", "lr": 3.0, "lb": 5.0},
        {"name": "momo-star", "lr": 3.0, "lb": 5.0},
        {"name": "muon-momo", "lr": 0.3, "truncate_loss": 5.0},
        {"name": "muonmax-momo", "lr": 0.3, "truncate_loss": 5.0},
    ],
    ids=lambda values: values["name"],
)
def test_what_each_update_took_of_its_learning_rate_is_recorded(
    tiny: Mapping, values: Mapping, tmp_path: Path
) -> None:
    tiny["optimizer"]["optimizer_params"] = {**values, "warm_up_fraction": 0.5}
    found = [(record["step_size"], record["lr"]) for record in records(tiny, tmp_path)]
    assert all(0 <= size <= lr for size, lr in found)
    assert any(0 < size < lr for size, lr in found)


def test_momo_adam_takes_more_than_its_learning_rate_at_first(
    tiny: Mapping, tmp_path: Path
) -> None:
    values = {"name": "momo-adam", "lr": 1e-4, "lr_schedule": "constant"}
    tiny["optimizer"]["optimizer_params"] = values
    sizes = [record["step_size"] for record in records(tiny, tmp_path)]
    # lr / rho: what corrects the bias of averages that start at zero.
    assert sizes == pytest.approx([1e-4 / (1 - 0.95**step) for step in range(1, 13)])


def test_without_truncation_there_is_nothing_to_record(tiny: Mapping, tmp_path: Path) -> None:
    tiny["optimizer"]["optimizer_params"] = {"name": "muon-momo", "truncate_loss": None}
    assert not any("step_size" in record for record in records(tiny, tmp_path))


def test_a_step_not_taken_has_no_size(
    tiny: Mapping, change: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["optimizer"]["optimizer_params"] = {"name": "momo", "lr": 3.0, "lb": 5.0}
    change(tiny, training__training_params__non_finite="skip")
    clip = training.Training._clip
    norms: list[torch.Tensor] = []

    def clipped(self: training.Training, limit: float) -> torch.Tensor:
        norms.append(clip(self, limit))
        return norms[-1] * math.nan if len(norms) in {1, 5} else norms[-1]

    monkeypatch.setattr(training.Training, "_clip", clipped)
    found = records(tiny, tmp_path)
    assert [r["step"] for r in found if "step_size" not in r] == [1, 5]


def test_a_run_whose_loss_is_not_finite_ends_as_diverged(tiny: Mapping, tmp_path: Path) -> None:
    values = {"name": "momo", "lr": 1e30, "lb": -1e30}
    tiny["optimizer"]["optimizer_params"] = values
    with pytest.raises(Diverged, match=r"(loss|gradient norm) is (nan|inf) at step \d of 12"):
        losses(tiny, tmp_path)


@pytest.mark.parametrize("name", ["momo-star", "muonmax-momo"])
def test_an_interrupted_run_takes_the_same_steps(
    tiny: Mapping, name: str, tmp_path: Path, stopping_run: Callable[[Path, int], Run]
) -> None:
    bound = {"truncate_loss": 5.0} if name == "muonmax-momo" else {"lb": 5.0}
    tiny["optimizer"]["optimizer_params"] = {"name": name, "lr": 1.0, **bound}
    undisturbed = records(tiny, tmp_path / "a")
    with pytest.raises(Preempted), stopping_run(tmp_path / "b", 6) as run:
        trainer.run(tiny, run)
    resumed = records(tiny, tmp_path / "b")
    for metric in ("step_size", "loss"):
        assert [r[metric] for r in resumed] == [r[metric] for r in undisturbed]
