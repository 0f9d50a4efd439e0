"""Types of a run's passes; fp16's scale, on a CPU with gradients that really overflow."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer
from rundir import UserError
from rundir.files import METRICS_FILE, iter_metrics
from trainer import TrainConfig, TrainingParams
from trainer.compute.precision import Precision
from trainer.parallel import Ranks
from trainer.training import Training

trainer.preload()

Mapping = dict[str, Any]
Change = Callable[..., Mapping]
CPU = torch.device("cpu")


def scaled_training(config: Mapping, scale: float) -> Training:
    """Return a run at step 0 whose loss is scaled as in fp16, though its products are fp32's."""
    training = Training(TrainConfig.from_mapping(config), Ranks(0, 1, CPU))
    training.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return training


def weights(training: Training) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in training.model.parameters()]


@pytest.mark.parametrize("name", ["adamw", "muon", "momo"])
def test_a_scaled_loss_takes_the_same_steps(tiny: Mapping, change: Change, name: str) -> None:
    change(tiny, optimizer__optimizer_params__name=name)
    plain = Training(TrainConfig.from_mapping(tiny), Ranks(0, 1, CPU))
    scaled = scaled_training(tiny, 2.0**10)
    for step in range(3):
        ours, theirs = scaled.step(step), plain.step(step)
        assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
        assert ours.grad_norm.item() == pytest.approx(theirs.grad_norm.item(), rel=1e-5)
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=1e-4, atol=1e-6)
    assert scaled.figures() == {"loss_scale": 2.0**10}


@pytest.mark.parametrize("name", ["adamw", "momo"])
def test_a_step_that_overflows_is_left_out_and_halves_the_scale(
    tiny: Mapping, change: Change, name: str
) -> None:
    change(tiny, optimizer__optimizer_params__name=name)
    training = scaled_training(tiny, 2.0**127)
    before = weights(training)
    update = training.step(0)
    assert not update.grad_norm.isfinite()
    assert training.figures() == {"loss_scale": 2.0**126}
    assert training.watch.fault() is None
    assert all(map(torch.equal, weights(training), before))
    for step in range(1, 20):
        update = training.step(step)
    assert update.grad_norm.isfinite()
    assert not all(map(torch.equal, weights(training), before))


def test_gradients_that_no_scale_can_mend_end_the_run(tiny: Mapping) -> None:
    training = scaled_training(tiny, 1.0)
    loss = training._loss

    def huge(forward: Any, batch: Any) -> torch.Tensor:
        part = loss(forward, batch)
        return part + part.detach() * 0 + (part - part.detach()) * torch.inf

    training._loss = huge  # type: ignore[method-assign]
    training.step(0)
    fault = training.watch.fault()
    assert fault is not None
    assert "at step 1 of 12" in fault


def test_the_scale_is_part_of_what_is_saved(tiny: Mapping) -> None:
    first, second = scaled_training(tiny, 2.0**127), scaled_training(tiny, 2.0**10)
    first.step(0)
    second.precision.load_state_dict(json.loads(json.dumps(first.precision.state_dict())))
    assert second.figures() == {"loss_scale": 2.0**126}
    second.precision.load_state_dict({})
    assert second.figures() == {"loss_scale": 2.0**126}


def test_fp16_on_a_cpu_is_float32_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        precision = Precision(TrainingParams(mixed_precision="float16"), CPU)
    assert precision.scaler is None
    assert caplog.messages == ["training_params.autocast: not used on cpu, float32 it is"]


def test_another_type_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(UserError) as error:
        TrainConfig.from_mapping(
            {
                "model": {"config": {}},
                "data": {"dataset": {}},
                "training": {"training_params": {"mixed_precision": "fp16"}},
                "optimizer": {"optimizer_params": {"name": "adamw"}},
            }
        )
    assert str(error.value) == (
        "training.training_params.mixed_precision = 'fp16'; must be one of bfloat16, float16, "
        "float32"
    )


DETERMINISTIC = """
import json, sys, torch, trainer
from rundir import Run
for name in "ab":
    with Run(f"{sys.argv[2]}/{name}", threads=1) as run:
        trainer.run(json.loads(sys.argv[1]), run)
torch.empty(3, 3).put_(torch.tensor([0]), torch.tensor([1.0]), accumulate=False)
"""


def test_deterministic_gives_the_same_bits_and_refuses_what_cannot(
    tiny: Mapping, change: Change, tmp_path: Path
) -> None:
    change(tiny, training__training_params__deterministic=True)
    done = subprocess.run(
        [sys.executable, "-c", DETERMINISTIC, json.dumps(tiny), str(tmp_path)],
        cwd=Path(trainer.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "put_" in done.stderr
    assert "deterministic" in done.stderr
    losses = [
        [record["loss"] for record in iter_metrics(tmp_path / name / METRICS_FILE)] for name in "ab"
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 16
