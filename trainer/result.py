"""What came out of a run, for who trains from Python."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from rundir.files import METRICS_FILE, iter_metrics


@dataclass(frozen=True)
class Result:
    """The losses of a run, in nats per token."""

    directory: Path
    """Where metrics.jsonl and the checkpoints are."""
    step: int
    """Optimizer steps done."""
    train_loss: float
    """Of the last step that was recorded."""
    val_loss: float
    """After the last step."""
    best_val_loss: float
    """The lowest."""
    best_step: int
    """Steps done when it was measured."""

    @classmethod
    def of(cls, directory: Path) -> Result:
        """Read a directory's metrics; of a step measured twice the later record counts.

        What was not measured is NaN, at step 0.
        """
        train: dict[int, float] = {}
        val: dict[int, float] = {}
        file = directory / METRICS_FILE
        for record in iter_metrics(file) if file.exists() else ():
            if "loss" in record:
                (val if record["stream"] == "val" else train)[record["step"]] = record["loss"]
        best = min(val, key=lambda step: (math.isnan(val[step]), val[step]), default=0)
        return cls(
            directory,
            max(train, default=0),
            train.get(max(train, default=0), math.nan),
            val.get(max(val, default=0), math.nan),
            val.get(best, math.nan),
            best,
        )
