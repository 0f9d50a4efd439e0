"""The trainer: GPT models, data, optimizers and the loop that joins them.

    from trainer import TrainConfig, TrainingParams, train

    result = train(TrainConfig(training=TrainingParams(max_steps=100)), "some/directory")
    print(result.val_loss)

Importing the package, and :func:`check`, load neither torch nor numpy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rundir import Run
from trainer.config import (
    DatasetConfig,
    GPTConfig,
    HuggingFaceConfig,
    LoggingParams,
    TrainConfig,
    TrainingParams,
)
from trainer.result import Result

__all__ = [
    "DatasetConfig",
    "GPTConfig",
    "HuggingFaceConfig",
    "LoggingParams",
    "Result",
    "TrainConfig",
    "TrainingParams",
    "check",
    "preload",
    "run",
    "train",
]


def check(config: Mapping[str, Any], world_size: int = 1, *, here: bool = False) -> None:
    """Refuse a configuration that cannot train; reads little of the data, and writes nothing.

    Args:
        config: resolved, as :func:`run` gets it.
        world_size: processes that the run will have.
        here: whether they will be on this machine, whose devices and shards count then.

    Raises:
        UserError: an unknown or missing key, a wrong type, an impossible value or combination; data
            that a look at it tells to be unusable; or no such device here.
    """
    found = TrainConfig.from_mapping(config)
    found.check_ranks(world_size)
    found.check_place(here=here)


def run(config: Mapping[str, Any], run: Run) -> None:
    """Train as a resolved configuration says; the task that the engine calls.

    Raises:
        UserError: the configuration cannot train, or not on this machine.
        Diverged: the loss is not finite.
        Preempted: a stop was requested; the checkpoint is written.
    """
    _train(TrainConfig.from_mapping(config), run)


def preload() -> None:
    """Import what training needs; a worker does so once, before it forks a process for each run."""
    # OpenMP threads wait spinning, for milliseconds, and take the core from the thread they wait
    # for when other processes want it too. libgomp reads the bound when it loads. Two threads on
    # two cores, thousand tokens/s by default | 1000 spins | passive: nano alone 37 | 36 | 32, nano
    # at a load of four to five 2.2 | 16 | 17; gpt-tiny 9.7 | 10.4 | 9.8 and 1.7 | 2.8 | 3.8.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")

    import trainer.loop  # noqa: F401
    from trainer.compute.allocation import keep_freed_memory
    from trainer.compute.startup import spare_dynamo

    spare_dynamo()
    keep_freed_memory(os.environ)


def train(config: TrainConfig, run: Run | Path | str) -> Result:
    """Train one model, from the newest good checkpoint in the run's directory on.

    Args:
        config: what to train, on what, and how.
        run: the engine's handle of the run, or a directory of one's own: it is created if needed,
            and gets what a run of the engine gets.

    Raises:
        UserError: the configuration cannot train, or not on this machine.
        Diverged: the loss is not finite.
        Preempted: a stop was requested; the checkpoint is written.
    """
    if isinstance(run, Run):
        _train(config, run)
        return Result.of(run.path)
    with Run(run) as own:
        _train(config, own)
    return Result.of(own.path)


def _train(config: TrainConfig, run: Run) -> None:
    preload()
    from trainer.loop import train as train_now  # here, so that torch loads only when training

    train_now(config, run)
