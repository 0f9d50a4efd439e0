"""A linear regression by gradient descent: a task that is not ours, in numpy alone.

docs/tasks.md shows the same in ten lines; this one also checks its config and resumes to the bit.
"""

from __future__ import annotations

import math
import os
import time
from typing import Any

import numpy as np

from rundir import Diverged, Preempted, Run, require

SAVE_EVERY = 10
"""Steps between two checkpoints."""


def check(config: dict[str, Any]) -> None:
    """Look at a run's config; called at launch for every run, before anything is submitted."""
    require(config["lr"] > 0, "lr", config["lr"], "above 0")
    require(config["steps"] >= 1, "steps", config["steps"], "at least 1")


def fit(config: dict[str, Any], run: Run) -> None:
    """Fit 8 weights to 256 noisy rows, from the last checkpoint or from zeros."""
    random = np.random.default_rng(config["seed"])
    rows, truth = random.normal(size=(256, 8)), random.normal(size=8)
    targets = rows @ truth + 0.1 * random.normal(size=256)
    step, weights, velocity = _restored(run)
    while step < config["steps"]:
        if run.stop_requested:
            _save(run, step, weights, velocity)
            raise Preempted(f"{run.stop_requested} at step {step}; checkpoint written")
        error = rows @ weights - targets
        velocity = config["momentum"] * velocity - config["lr"] * rows.T @ error / len(rows)
        weights, step = weights + velocity, step + 1
        loss = float(error @ error) / len(rows)
        run.log("train", step, loss=loss)
        run.progress(step, config["steps"], loss=loss)
        if not loss < 1e6:
            raise Diverged(f"loss is {loss:.3g} at step {step}")
        if step % SAVE_EVERY == 0:
            _save(run, step, weights, velocity)
        time.sleep(config["step_s"])
    run.log("val", step, distance=math.dist(weights, truth))


def _save(run: Run, step: int, *arrays: np.ndarray) -> None:
    """Write to a sibling and put it in place, so that a kill leaves the old one or the new one."""
    run.checkpoints.mkdir(exist_ok=True)
    sibling = run.checkpoints / "new.npz"
    np.savez(sibling, step, *arrays)
    os.replace(sibling, run.checkpoints / "last.npz")


def _restored(run: Run) -> tuple[int, np.ndarray, np.ndarray]:
    try:
        with np.load(run.checkpoints / "last.npz") as saved:
            step, weights, velocity = (saved[name] for name in saved.files)
    except FileNotFoundError:
        return 0, np.zeros(8), np.zeros(8)
    return int(step), weights, velocity
