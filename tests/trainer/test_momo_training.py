"""What the loop hands to an optimizer whose step depends on the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trainer
from rundir import Diverged, Run
from rundir.files import METRICS_FILE, iter_metrics
from trainer import training
from trainer.optim import build_optimizer

Mapping = dict[str, Any]
Change = Callable[..., Mapping]
NAMES = ("momo", "momo-star", "momo-adam", "momo-adam-star")


def losses(config: Mapping, path: Path) -> list[float]:
    with Run(path, threads=1) as run:
        trainer.run(config, run)
    return [r["loss"] for r in iter_metrics(path / METRICS_FILE) if r["stream"] == "train"]


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
    assert losses(tiny, tmp_path) == pytest.approx([math.log(256)] * 12, abs=0.05)


def test_a_run_whose_loss_is_not_finite_ends_as_diverged(tiny: Mapping, tmp_path: Path) -> None:
    values = {"name": "momo", "lr": 1e30, "lb": -1e30}
    tiny["optimizer"]["optimizer_params"] = values
    with pytest.raises(Diverged, match=r"(loss|gradient norm) is (nan|inf) at step \d of 12"):
        losses(tiny, tmp_path)
