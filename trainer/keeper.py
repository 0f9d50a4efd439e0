"""What keeps a run's state in its checkpoints, and restores it from them."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from rundir import Diverged, OptsweepError, Run, UserError
from trainer.checkpoint import newest_checkpoint, read_checkpoint, save_checkpoint
from trainer.optim.division import group_record, with_our_options
from trainer.training import Training

log = logging.getLogger(__name__)


class Keeper:
    """Saves and resumes one training run, or one rank's part of it."""

    def __init__(self, training: Training, run: Run) -> None:
        self._training, self._run = training, run

    def save(self, step: int) -> None:
        """Write a checkpoint of the state after ``step`` steps; only rank 0 does.

        Raises:
            Diverged: the state is not finite; nothing is written.
            OptsweepError: it can't be written, e.g. the disk is full; the earlier ones are whole.
            Superseded: a later attempt at the run has begun.
        """
        directory, training = self._run.checkpoints, self._training
        fault = training.ranks.agreed(training.watch.fault() or _ruin(training, step))
        if fault:
            raise Diverged(fault)
        if training.ranks.rank:
            return
        state, keep_last = _state(training, step), training.config.logging.keep_last
        try:
            path = save_checkpoint(directory, step, state, keep_last)
        except OSError as error:
            raise OptsweepError(
                f"the checkpoint of step {step} can't be written: {error}; earlier ones are whole"
            ) from error
        log.info("step %d: saved %s", step, path.name)

    def resume(self) -> int:
        """Restore the checkpoint that is rank 0's newest whole one and return its step, or 0.

        The optimizer's options are the configuration's from then on, not the checkpoint's.

        Raises:
            UserError: it is of another model or optimizer, or of other parameter groups.
            Superseded: a later attempt at the run has begun.
        """
        directory, ranks = self._run.checkpoints, self._training.ranks
        found = newest_checkpoint(directory) if ranks.rank == 0 else None
        path: Path | None = ranks.told_by(0, found)
        if path is None:
            return 0
        state = read_checkpoint(path)
        _refuse_other_run(directory, state, self._training)
        _restore(self._training, state)
        before = state.get("world_size", 1)
        if before != ranks.size:
            log.info(
                "saved by %d ranks, continued by %d: sums have another order and other last bits",
                before,
                ranks.size,
            )
        return int(state["step"])


def _state(training: Training, step: int) -> dict[str, Any]:
    """Return what a checkpoint holds; the tensors are the run's own, not copies."""
    device = training.device
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {
        "step": step,
        "world_size": training.ranks.size,
        "model_config": asdict(training.config.model),
        "optimizer_name": training.config.optimizer.name,
        "optimizer_groups": group_record(training.optimizer, training.model),
        "skipped_steps": (training.watch.skipped, training.watch.in_a_row),
        "precision": training.precision.state_dict(),
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
    }


def _restore(training: Training, state: dict[str, Any]) -> None:
    training.model.load_state_dict(state["model"])
    optimizer = training.optimizer
    optimizer.load_state_dict(with_our_options(optimizer, state["optimizer"]))
    torch.set_rng_state(state["rng"]["cpu"])
    if training.device.type == "cuda" and state["rng"]["cuda"]:
        torch.cuda.set_rng_state(state["rng"]["cuda"][0], training.device)
    training.precision.load_state_dict(state.get("precision", {}))
    training.watch.skipped, training.watch.in_a_row = state.get("skipped_steps", (0, 0))


@torch.no_grad()
def _ruin(training: Training, step: int) -> str | None:
    """Say what in the state after ``step`` steps is not finite; None where all of it is.

    A finite gradient does that where the step or its square leaves the range of numbers.
    """
    names: dict[Any, str] = {weight: name for name, weight in training.model.named_parameters()}
    kept: dict[str, Any] = {name: weight for weight, name in names.items()}
    for owner, state in training.optimizer.state.items():
        kept |= {f"{key} of {names.get(owner, owner)}": part for key, part in state.items()}
    tensors = {name: part for name, part in kept.items() if isinstance(part, torch.Tensor)}
    sound = [tensor.isfinite().all().to(training.device) for tensor in tensors.values()]
    found = torch.stack(sound).tolist()
    if all(found):
        return None
    ruined = list(tensors)[found.index(False)]
    return f"{ruined} is not finite after step {step} of {training.total_steps}"


def _refuse_other_run(directory: Path, state: dict[str, Any], training: Training) -> None:
    """Refuse a checkpoint of another model or optimizer, or of other parameter groups."""
    config = training.config
    _refuse_other(directory, state, "model_config", asdict(config.model))
    _refuse_other(directory, state, "optimizer_name", config.optimizer.name)
    _refuse_other_groups(directory, state.get("optimizer_groups"), training)


def _refuse_other(directory: Path, state: dict[str, Any], key: str, ours: object) -> None:
    if state[key] != ours:
        raise UserError(
            f"{directory} holds checkpoints with {key} = {state[key]!r}; must be {ours!r}, "
            "as configured; train in another directory"
        )


def _refuse_other_groups(directory: Path, saved: dict[str, Any] | None, training: Training) -> None:
    """Refuse a checkpoint whose groups are not ours; loading it would undo what they ask."""
    ours = group_record(training.optimizer, training.model)
    for name, mine in ours.items():
        theirs = mine if saved is None else saved[name]
        if tuple(theirs) != mine:
            said = "group {}, lr {:g}, weight decay {:g}"
            raise UserError(
                f"{directory} holds checkpoints with {name} in {said.format(*theirs)}; must be "
                f"{said.format(*mine)}, as configured; train in another directory"
            )
