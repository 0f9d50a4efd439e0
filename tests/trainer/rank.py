"""One rank of a small run, as ``python rank.py ORDERS``; test_parallel.py gives the orders."""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import trainer
from rundir import OptsweepError, Run
from trainer import TrainConfig
from trainer.parallel import joined
from trainer.training import Training

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class MovedRun(Run):
    """A run that something befalls once a step is logged."""

    def __init__(self, order: dict[str, Any]) -> None:
        super().__init__(
            order["path"], attempt=order["attempt"], threads=1, rank=RANK, world_size=SIZE
        )
        self._at = {at["step"]: at["fate"] for at in order["fates"] if at["rank"] == RANK}

    def log(self, stream: str, step: int, **metrics: float) -> None:
        super().log(stream, step, **metrics)
        fate = self._at.get(step)
        if fate == "stop":
            self.request_stop("SIGUSR1")
        elif fate == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fate == "poison":
            self._poison()

    def _poison(self) -> None:
        """Make the next micro-batch's loss, and so its gradient, NaN on this rank."""
        loss = Training._loss

        def poisoned(training: Training, forward: Any, batch: Any) -> torch.Tensor:
            if not torch.is_grad_enabled():
                return loss(training, forward, batch)
            Training._loss = loss  # type: ignore[method-assign]
            return loss(training, forward, batch) * float("nan")

        Training._loss = poisoned  # type: ignore[method-assign]


def weights_after_steps(order: dict[str, Any]) -> str:
    """Take three steps and return a digest of this rank's weights."""
    config = TrainConfig.from_mapping(order["config"])
    with (
        Run(order["path"], attempt=1, threads=1, rank=RANK, world_size=SIZE) as run,
        joined(run, "cpu") as ranks,
    ):
        training = Training(config, ranks)
        for step in range(3):
            training.step(step)
    weights = b"".join(w.detach().numpy().tobytes() for w in training.model.parameters())
    return hashlib.sha256(weights).hexdigest()


def trained(order: dict[str, Any]) -> str:
    """Train to the end and return what stopped it."""
    try:
        with MovedRun(order) as run:
            trainer.run(order["config"], run)
    except OptsweepError as error:
        return f"{type(error).__name__}: {error}"
    return "completed"


def main() -> None:
    faulthandler.dump_traceback_later(150, exit=True)  # says where a rank waits for the other
    said = {}
    for order in json.loads(Path(sys.argv[1]).read_text()):
        os.environ["MASTER_PORT"] = order["port"]
        if order["digest"]:
            said[order["path"]] = weights_after_steps(order)
        else:
            said[order["path"]] = trained(order)
        Path(f"{sys.argv[1]}.{RANK}").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
