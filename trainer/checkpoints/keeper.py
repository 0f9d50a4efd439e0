"""What keeps a run's state in its checkpoints, and restores it from them."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from rundir import Diverged, OptsweepError, Run, Superseded, UserError
from trainer.checkpoints.files import (
    FORMAT,
    Kept,
    best_steps,
    list_finished,
    losses_of,
    newest_checkpoint,
    note_loss,
    path_of,
    read_checkpoint,
    remove_unfinished,
    save_checkpoint,
)
from trainer.checkpoints.snapshot import HostCopy
from trainer.checkpoints.writer import Writer
from trainer.config import TrainConfig
from trainer.model import build_model
from trainer.optim import build_optimizer
from trainer.optim.division import group_record, with_our_options
from trainer.training import Averaging, Training

log = logging.getLogger(__name__)


class Keeper:
    """Saves and resumes one training run, or one rank's part of it.

    A checkpoint is written by another thread, from a copy; one at a time. What goes wrong there,
    :meth:`fault` returns; what nobody has asked for is raised when the ``with`` block ends, which
    waits for the writing::

        with Keeper(training, run) as keeper:
            step = keeper.resume()
            ...
    """

    def __init__(self, training: Training, run: Run) -> None:
        params = training.config.logging
        self._training, self._run = training, run
        self._kept = Kept(params.keep_last, params.keep_best)
        self._copy = HostCopy(training.device) if params.save_in_background else None
        self._writer = Writer()
        self._is_abandoned = False
        self._newest: int | None = None
        """Step of the newest checkpoint, which may still be on its way to the disk."""
        self._losses: dict[int, float] = {}
        """Validation losses of the checkpoints, and of the last validation."""

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the writing end; where nobody wants its result, at once."""
        self._is_abandoned = isinstance(error, (Superseded, KeyboardInterrupt))
        self._writer.wait()
        fault = self.fault()
        if fault is not None and error is None:
            raise fault
        if fault is not None and not self._is_abandoned:  # what ends the run has been said first
            log.error("%s", fault)

    def fault(self) -> BaseException | None:
        """Return what went wrong since the last call, for all ranks to hear; costs nothing.

        An OptsweepError where a checkpoint can't be written, e.g. as the disk is full; Superseded
        where a later attempt at the run has begun.
        """
        return self._writer.fault()

    def finish(self) -> None:
        """Wait until the newest checkpoint is on the disk; all ranks call it.

        Raises:
            OptsweepError: it can't be written.
            Superseded: a later attempt at the run has begun.
            RanksLost: either on rank 0, in its words.
        """
        self._writer.wait()
        self._training.ranks.agreed(None, self.fault())

    def validated(self, step: int, loss: float) -> None:
        """Take note of the validation loss after ``step`` steps, on disk if they are saved already.

        Raises:
            OptsweepError: the disk does not take it.
        """
        self._losses[step] = loss
        if step == self._newest and self._training.ranks.rank == 0:
            try:
                note_loss(path_of(self._run.checkpoints, step), loss, self._permit)
            except OSError as error:
                raise OptsweepError(
                    f"the validation loss of step {step} can't be written: {error}"
                ) from error

    def is_validated(self, step: int) -> bool:
        """Say whether the validation loss after ``step`` steps is on record with a checkpoint."""
        return step in self._losses

    def is_best(self, step: int) -> bool:
        """Say whether the validation after this step earns it one of the places for the best."""
        return step in best_steps(self._losses, self._kept.best)

    def save(self, step: int) -> None:
        """Have a checkpoint of the state after ``step`` steps written; only rank 0 writes.

        Cost to the training thread: a look at every number and a copy of it, once the checkpoint
        before is on the disk.

        Raises:
            Diverged: the state is not finite; nothing is written.
            OptsweepError: this or the earlier one can't be written.
            Superseded: a later attempt at the run has begun.
            RanksLost: rank 0 could not write the earlier one, in its words.
        """
        directory, training = self._run.checkpoints, self._training
        if step == self._newest:
            return
        began = time.perf_counter()
        self._writer.wait()
        ruin = training.watch.fault() or _ruin(training, step)
        fault = training.ranks.agreed(ruin, self.fault())
        if fault:
            raise Diverged(fault)
        self._newest, loss = step, self._losses.get(step)
        self._forget_losses()
        state = _state(training, step)
        if training.ranks.rank:
            return
        if self._copy is None:
            self._writer.start(lambda: self._write(directory, step, state, loss))
            self._writer.wait()
            return
        copy, copied = self._copy, self._copy.of(state)
        stall = time.perf_counter() - began

        def write() -> None:
            copy.wait()
            self._write(directory, step, copied, loss, stall)

        self._writer.start(write)

    def resume(self) -> int:
        """Restore the checkpoint that is rank 0's newest whole one and return its step, or 0.

        The optimizer's options are the configuration's from then on, not the checkpoint's.

        Raises:
            UserError: it is of another model or optimizer, or of other parameter groups.
            Superseded: a later attempt at the run has begun.
        """
        directory, ranks = self._run.checkpoints, self._training.ranks
        found = None
        if ranks.rank == 0:
            remove_unfinished(directory)
            found = (newest_checkpoint(directory), losses_of(directory))
        path, losses = ranks.told_by(0, found)
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
        saved_with = state.get("made_with", {})
        for what, ours in _made_with(self._training).items():
            if saved_with.get(what, ours) != ours:
                said = "saved with %s %s, continued with %s: sums may have other last bits"
                log.info(said, what, saved_with[what], ours)
        self._newest = step = int(state["step"])
        self._losses = {at: loss for at, loss in losses.items() if at <= step}
        return step

    def _write(
        self,
        directory: Path,
        step: int,
        state: dict[str, Any],
        loss: float | None,
        stall: float | None = None,
    ) -> None:
        """Write a checkpoint; ``stall`` is how long training waited, if not for all of it."""
        began = time.perf_counter()
        try:
            path = save_checkpoint(
                directory, step, state, self._kept, loss=loss, permit=self._permit
            )
        except OSError as error:
            older = next((at for at, _ in list_finished(directory) if at < step), None)
            left = "there is no earlier one" if older is None else f"that of step {older} stays"
            raise OptsweepError(
                f"the checkpoint of step {step} can't be written: {error}; {left}"
            ) from error
        took = time.perf_counter() - began
        log.info(
            "step %d: saved %s in %.2f s, of which training waited %.2f s",
            step,
            path.name,
            took,
            took if stall is None else stall,
        )

    def _permit(self) -> None:
        """Raise where nothing may be written any more."""
        if self._is_abandoned:
            raise InterruptedError("the run ends")
        _ = self._run.checkpoints

    def _forget_losses(self) -> None:
        """Keep in mind only the losses that a later one has to beat."""
        best = best_steps(self._losses, self._kept.best)
        self._losses = {step: self._losses[step] for step in best}


def weights_to_validate(
    config: TrainConfig, state: dict[str, Any], directory: Path, device: torch.device
) -> nn.Module:
    """Return a model in evaluation mode with the weights of a checkpoint that are for validation.

    Args:
        config: what was trained.
        state: the checkpoint's.
        directory: where the checkpoint lies, for the message.
        device: where to put the model.

    Raises:
        UserError: the checkpoint is of another model or optimizer.
    """
    _refuse_other(directory, state, "model_config", asdict(config.model))
    _refuse_other(directory, state, "optimizer_name", config.optimizer.name)
    model = build_model(config.model, config.training.context_length).to(device)
    model.load_state_dict(state["model"])
    # The kernels of where it was trained need not run here.
    optimizer = build_optimizer(model, replace(config.optimizer, backend="auto"))
    if isinstance(optimizer, Averaging):
        optimizer.load_state_dict(with_our_options(optimizer, state["optimizer"]))
        optimizer.eval()
    return model.eval()


def _state(training: Training, step: int) -> dict[str, Any]:
    """Return what a checkpoint holds; the tensors are the run's own, not copies.

    Learning rates and the place in the data follow from the step.
    """
    device = training.device
    model, optimizer = training.state_dicts()
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {
        "format": FORMAT,
        "step": step,
        "world_size": training.ranks.size,
        "made_with": _made_with(training),
        "model_config": asdict(training.config.model),
        "optimizer_name": training.config.optimizer.name,
        "optimizer_groups": group_record(training.optimizer, training.stepped),
        "data": _data_record(training),
        "settings": _settings(training.config),
        "skipped_steps": (training.watch.skipped, training.watch.in_a_row),
        "precision": training.precision.state_dict(),
        "model": model,
        "optimizer": optimizer,
        "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
    }


def _made_with(training: Training) -> dict[str, str]:
    """Return what the last bits of a sum depend on, beside the number of ranks."""
    is_cuda = training.device.type == "cuda"
    return {
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(training.device) if is_cuda else "cpu",
        "threads": "any" if is_cuda else str(torch.get_num_threads()),
    }


def _data_record(training: Training) -> dict[str, Any]:
    """Return what, with the step, says which tokens come next."""
    config = training.config
    return {
        "dataset": config.data.name,
        "tokenizer": config.data.tokenizer,
        "train_tokens": training.train_tokens,
        "content": training.content,
        "origin": training.origin,
        "tokens_processed": config.training.tokens_processed,
        "context_length": config.training.context_length,
        "seed": config.seed,
    }


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Return what else the steps were taken with; only from Python may it change in between."""
    optimizer = asdict(config.optimizer)
    del optimizer["backend"]  # rounds otherwise, no more
    params = config.training
    more = {"gradnorm": params.gradnorm, "max_steps": params.max_steps}
    return {**{f"optimizer.{key}": value for key, value in optimizer.items()}, **more}


def _restore(training: Training, state: dict[str, Any]) -> None:
    optimizer = with_our_options(training.optimizer, state["optimizer"])
    training.load_state_dicts(state["model"], optimizer)
    torch.set_rng_state(state["rng"]["cpu"])
    if training.device.type == "cuda" and state["rng"]["cuda"]:
        torch.cuda.set_rng_state(state["rng"]["cuda"][0], training.device)
    training.precision.load_state_dict(state.get("precision", {}))
    training.watch.skipped, training.watch.in_a_row = state.get("skipped_steps", (0, 0))


@torch.no_grad()
def _ruin(training: Training, step: int) -> str | None:
    """Say what in the state after ``step`` steps is not finite; None where all of it is.

    A finite gradient does that where the step or its square leaves the range of numbers. Reads the
    state once: aminmax passes a NaN on, and takes an eighth of what isfinite().all() does.
    """
    names: dict[Any, str] = {weight: name for name, weight in training.stepped.named_parameters()}
    kept: dict[str, Any] = {name: weight for weight, name in names.items()}
    for owner, state in training.optimizer.state.items():
        kept |= {f"{key} of {names.get(owner, owner)}": part for key, part in state.items()}
    tensors = {
        name: part
        for name, part in kept.items()
        if isinstance(part, torch.Tensor) and part.is_floating_point() and part.numel()
    }
    ends = [torch.stack(part.aminmax()) for part in tensors.values()]
    sound = [both.isfinite().all().to(training.device) for both in ends]
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
    ours, before = _data_record(training), state.get("data", {})
    either = ("content", "origin")  # prepared anew, one of them may be another
    known = either if any(before.get(key) == ours[key] for key in either) else ("origin",)
    for key, theirs in before.items():
        if key not in known and ours.get(key, theirs) != theirs:
            said = "the checkpoint of step %d is of data with %s = %r, now %r: other batches follow"
            log.warning(said, state["step"], key, theirs, ours[key])
    now = _settings(config)
    for key, theirs in state.get("settings", {}).items():
        if now.get(key, theirs) != theirs:
            said = "the checkpoint of step %d was trained with %s = %r, now %r from there on"
            log.warning(said, state["step"], key, theirs, now[key])


def _refuse_other(directory: Path, state: dict[str, Any], key: str, ours: object) -> None:
    if state[key] != ours:
        raise UserError(
            f"{directory} holds checkpoints with {key} = {state[key]!r}; must be {ours!r}, "
            "as configured; train in another directory"
        )


def _refuse_other_groups(directory: Path, saved: dict[str, Any] | None, training: Training) -> None:
    """Refuse a checkpoint whose groups are not ours; loading it would undo what they ask."""
    ours = group_record(training.optimizer, training.stepped)
    for name, mine in ours.items():
        theirs = mine if saved is None else saved[name]
        if tuple(theirs) != mine:
            said = "group {}, lr {:g}, weight decay {:g}"
            raise UserError(
                f"{directory} holds checkpoints with {name} in {said.format(*theirs)}; must be "
                f"{said.format(*mine)}, as configured; train in another directory"
            )
