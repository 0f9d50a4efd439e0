"""What the watch over losses and gradients costs a GPU, and that it saves nothing ruined there."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer
from rundir import Diverged, Run
from trainer import GPTConfig, LoggingParams, TrainConfig, TrainingParams
from trainer.checkpoints import list_checkpoints, read_checkpoint
from trainer.optim import optimizer_params
from trainer.training import Training
from trainer.watch import Watch


@contextmanager
def waits() -> Iterator[list[warnings.WarningMessage]]:
    """Count the times that the host waits for the device."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Said once a process, and no wait.
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield caught
        finally:
            torch.cuda.set_sync_debug_mode("default")


def numbers(cuda: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones((), device=cuda), torch.full((), 2.0, device=cuda)


def test_diverge_waits_for_nothing_in_a_step(cuda: torch.device) -> None:
    watch = Watch(TrainingParams(), 1000, reads_are_free=False)
    loss, norm = numbers(cuda)
    with waits() as caught:
        for step in range(1, 100):
            watch.lets_pass(step, loss, norm)
    assert not caught
    with waits() as caught:
        assert watch.fault() is None
    assert len(caught) == 1


def test_skip_waits_once_a_step(cuda: torch.device) -> None:
    watch = Watch(TrainingParams(non_finite="skip"), 1000, reads_are_free=False)
    loss, norm = numbers(cuda)
    with waits() as caught:
        for step in range(1, 11):
            watch.lets_pass(step, loss, norm)
    assert len(caught) == 10


def config(name: str, **training: Any) -> TrainConfig:
    sizes: dict[str, Any] = {"tokens_processed": 128, "val_tokens_processed": 128}
    sizes |= {"batch_size": 4, "context_length": 16, "max_steps": 12, **training}
    return TrainConfig(
        model=GPTConfig(n_embd=16, n_layer=1, n_head=2),
        training=TrainingParams(**sizes),
        optimizer=optimizer_params({"name": name, "lr": 0.01}, ""),
        logging=LoggingParams(log_step=100, val_step=100, save_ckpt_step=4),
        device="cuda",
    )


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("name", ["adamw", "muon", "scion", "momo-adam", "dap-ns-nadam"])
@pytest.mark.parametrize("policy", ["diverge", "skip"])
def test_nothing_ruined_is_saved(
    name: str, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, clip, at = Training.step, Training._clip, [0]

    def counted(self: Training, done: int) -> Any:
        at[0] = done + 1
        return step(self, done)

    def clipped(self: Training, limit: float) -> torch.Tensor:
        gradient = next(self.model.parameters()).grad
        if at[0] == 5 and gradient is not None:
            gradient.view(-1)[3] = math.nan
        return clip(self, limit)

    monkeypatch.setattr(Training, "step", counted)
    monkeypatch.setattr(Training, "_clip", clipped)
    with Run(tmp_path, threads=1) as run:
        if policy == "diverge":
            with pytest.raises(Diverged, match="gradient norm is nan at step 5 of 12"):
                trainer.train(config(name), run)
        else:
            trainer.train(config(name, non_finite=policy), run)
    found = list_checkpoints(tmp_path / "checkpoints")
    assert [at for at, _ in found] == ([4] if policy == "diverge" else [12, 8])
    for _, file in found:
        assert all(weight.isfinite().all() for weight in read_checkpoint(file)["model"].values())


@pytest.mark.usefixtures("cuda")
def test_what_skip_costs_a_small_model_is_shown(tmp_path: Path) -> None:
    """A small model's steps are bound by the host, so that a wait in each costs most there."""
    seconds = {}
    for policy in ("diverge", "skip", "diverge", "skip"):
        with Run(tmp_path / policy / str(len(seconds)), threads=1) as run:
            began = time.perf_counter()
            trainer.train(config("adamw", non_finite=policy, max_steps=300), run)
            seconds[policy] = time.perf_counter() - began
    print(", ".join(f"{policy} {1e3 * s / 300:.2f} ms a step" for policy, s in seconds.items()))  # noqa: T201
    assert seconds["skip"] < 3 * seconds["diverge"]
