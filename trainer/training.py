"""Model, optimizer and data of one run: a step, a validation, a checkpoint at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from rundir import Diverged, OptsweepError, UserError
from rundir.errors import IllegalValue
from trainer.checkpoint import newest_checkpoint, read_checkpoint, save_checkpoint
from trainer.config import TrainConfig
from trainer.data.batches import Batch, TrainingOrder, validation_batches
from trainer.data.corpus import load_corpus
from trainer.model import GPT
from trainer.optim import build_optimizer, lr_factor
from trainer.optim.clipping import FoldsClip
from trainer.optim.division import group_record, with_our_options
from trainer.parallel import Ranks, accumulating
from trainer.watch import Watch

log = logging.getLogger(__name__)


@runtime_checkable
class Averaging(Protocol):
    """An optimizer that trains other weights than those to validate."""

    def eval(self) -> None:
        """Put the weights to validate into the model."""

    def train(self) -> None:
        """Put those in training back, to the bit."""


@dataclass(frozen=True)
class Update:
    """What a step measured; the tensors stay on the device until somebody reads them."""

    loss: torch.Tensor
    """Mean over the step's tokens of all ranks, in nats per token, before the update."""
    grad_norm: torch.Tensor
    """Global norm of the gradient before clipping."""
    lr: float
    """Learning rate of the update, taken or not."""


class Training:
    """One training run in memory, or one rank's part of it."""

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        """Build everything at step 0.

        Raises:
            UserError: the data is too short for the configuration, the optimizer does not fit the
                model or this machine, or a package is missing.
        """
        device = ranks.device
        self.config, self.ranks, self.device = config, ranks, device
        torch.manual_seed(config.seed)
        corpus = load_corpus(config.data)
        self.train_tokens, self._validation = len(corpus.train), corpus.validation
        tokens = len(corpus.train) + len(corpus.validation)
        config.check_length(tokens)
        self.total_steps = config.total_steps(tokens)
        params = config.training
        self._order = TrainingOrder(
            corpus.train, params.context_length, config.seed, rank=ranks.rank, world=ranks.size
        )
        self.model = GPT(config.model, params.context_length).to(device)
        self.optimizer = self._built_optimizer()
        self._averaging = ranks.averaging(self.model)
        self._forward = self._compiled(self.model)
        self._training_forward = (
            self._forward if ranks.size == 1 else self._compiled(self._averaging)
        )
        self._precision = self._autocast()
        self.reads_are_free = device.type == "cpu"
        """Whether reading a tensor's value waits for nothing."""
        self.watch = Watch(params, self.total_steps, reads_are_free=self.reads_are_free)

    def step(self, step: int) -> Update:
        """Take the optimizer step that follows ``step`` done ones, if it may be taken.

        It may not where loss or gradient are known not to be finite; :attr:`watch` says so.
        """
        params = self.config.training
        lr = self._set_lr(step)
        sequences = params.tokens_processed // params.context_length
        micro_batches = sequences // params.batch_size
        loss = torch.zeros((), device=self.device)
        parts = self._order.micro_batches(step, sequences, params.batch_size)
        for number, batch in enumerate(parts, start=1):
            with accumulating(self._averaging, last=number == micro_batches):
                part = self._loss(self._training_forward, batch) / micro_batches
                part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        loss = self.ranks.mean(loss)
        norm = self._clip(params.gradnorm or float("inf"))
        if self.watch.lets_pass(step + 1, loss, norm):
            # A tensor: some steps depend on the loss, and none has to wait for it.
            self.optimizer.step(lambda: loss)  # type: ignore[arg-type, return-value]
        elif isinstance(self.optimizer, FoldsClip):
            self.optimizer.forget()
        self.optimizer.zero_grad()
        return Update(loss, norm, lr)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Return the mean loss in nats per token over the same windows each time."""
        params = self.config.training
        total, count = torch.zeros((), device=self.device), 0
        self.model.eval()
        if isinstance(self.optimizer, Averaging):
            self.optimizer.eval()
        for batch in validation_batches(
            self._validation,
            params.context_length,
            params.batch_size // self.ranks.size,
            params.val_tokens_processed,
            rank=self.ranks.rank,
            world=self.ranks.size,
        ):
            total += self._loss(self._forward, batch) * batch[0].numel()
            count += batch[0].numel()
        self.model.train()
        if isinstance(self.optimizer, Averaging):
            self.optimizer.train()
        sums = torch.stack((total.double(), total.new_tensor(count, dtype=torch.float64)))
        whole, tokens = self.ranks.sum(sums).tolist()
        return float(whole / tokens)

    def save(self, directory: Path, step: int) -> None:
        """Write a checkpoint of the state after ``step`` steps; only rank 0 does.

        Raises:
            Diverged: the state is not finite; nothing is written.
            OptsweepError: it can't be written, e.g. the disk is full; the earlier ones are whole.
        """
        fault = self.ranks.agreed(self.watch.fault() or self._ruin(step))
        if fault:
            raise Diverged(fault)
        if self.ranks.rank:
            return
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        state = {
            "step": step,
            "world_size": self.ranks.size,
            "model_config": asdict(self.config.model),
            "optimizer_name": self.config.optimizer.name,
            "optimizer_groups": group_record(self.optimizer, self.model),
            "skipped_steps": (self.watch.skipped, self.watch.in_a_row),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }
        try:
            path = save_checkpoint(directory, step, state, self.config.logging.keep_last)
        except OSError as error:
            raise OptsweepError(
                f"the checkpoint of step {step} can't be written: {error}; earlier ones are whole"
            ) from error
        log.info("step %d: saved %s", step, path.name)

    def resume(self, directory: Path) -> int:
        """Restore the checkpoint that is rank 0's newest whole one and return its step, or 0.

        The optimizer's options are the configuration's from then on, not the checkpoint's.

        Raises:
            UserError: it is of another model or optimizer, or of other parameter groups.
        """
        found = newest_checkpoint(directory) if self.ranks.rank == 0 else None
        path: Path | None = self.ranks.told_by(0, found)
        if path is None:
            return 0
        state = read_checkpoint(path)
        _refuse_other(directory, state, "model_config", asdict(self.config.model))
        _refuse_other(directory, state, "optimizer_name", self.config.optimizer.name)
        self._refuse_other_groups(directory, state.get("optimizer_groups"))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(with_our_options(self.optimizer, state["optimizer"]))
        torch.set_rng_state(state["rng"]["cpu"])
        if self.device.type == "cuda" and state["rng"]["cuda"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"][0], self.device)
        self.watch.skipped, self.watch.in_a_row = state.get("skipped_steps", (0, 0))
        before = state.get("world_size", 1)
        if before != self.ranks.size:
            log.info(
                "saved by %d ranks, continued by %d: sums have another order and other last bits",
                before,
                self.ranks.size,
            )
        return int(state["step"])

    def _loss(self, forward: Callable[..., Any], batch: Batch) -> torch.Tensor:
        inputs, targets = (part.to(self.device, non_blocking=True) for part in batch)
        with self._precision:
            loss: torch.Tensor = forward(inputs, targets)
        return loss

    def _clip(self, limit: float) -> torch.Tensor:
        """Clip the gradient of the coming step and return its norm before."""
        if isinstance(self.optimizer, FoldsClip):
            return self.optimizer.clip_grad_norm(limit)
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)

    def _built_optimizer(self) -> torch.optim.Optimizer:
        try:
            return build_optimizer(self.model, self.config.optimizer)
        except IllegalValue as error:
            name = f"optimizer.optimizer_params.{error.name}"
            raise IllegalValue(name, error.value, error.must) from None

    @torch.no_grad()
    def _ruin(self, step: int) -> str | None:
        """Say what in the state after ``step`` steps is not finite; None where all of it is.

        A finite gradient does that where the step or its square leaves the range of numbers.
        """
        names: dict[Any, str] = {weight: name for name, weight in self.model.named_parameters()}
        kept: dict[str, Any] = {name: weight for weight, name in names.items()}
        for owner, state in self.optimizer.state.items():
            kept |= {f"{key} of {names.get(owner, owner)}": part for key, part in state.items()}
        tensors = {name: part for name, part in kept.items() if isinstance(part, torch.Tensor)}
        sound = [tensor.isfinite().all().to(self.device) for tensor in tensors.values()]
        found = torch.stack(sound).tolist()
        if all(found):
            return None
        ruined = list(tensors)[found.index(False)]
        return f"{ruined} is not finite after step {step} of {self.total_steps}"

    def _refuse_other_groups(self, directory: Path, saved: dict[str, Any] | None) -> None:
        """Refuse a checkpoint whose groups are not ours; loading it would undo what they ask."""
        ours = group_record(self.optimizer, self.model)
        for name, mine in ours.items():
            theirs = mine if saved is None else saved[name]
            if tuple(theirs) != mine:
                said = "group {}, lr {:g}, weight decay {:g}"
                raise UserError(
                    f"{directory} holds checkpoints with {name} in {said.format(*theirs)}; must be "
                    f"{said.format(*mine)}, as configured; train in another directory"
                )

    def _set_lr(self, step: int) -> float:
        optimizer = self.config.optimizer
        factor = lr_factor(
            optimizer.lr_schedule, step, self.total_steps, optimizer.warm_up_fraction
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return optimizer.lr * factor

    def _compiled(self, model: torch.nn.Module) -> Callable[..., Any]:
        if not self.config.training.compile:
            return model
        if self.device.type != "cuda":
            log.info("training_params.compile: not used on %s", self.device.type)
            return model
        compiled: Callable[..., Any] = torch.compile(model)
        return compiled

    def _autocast(self) -> AbstractContextManager[Any]:
        params = self.config.training
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision(params.tensorcore_precision)
        if not params.autocast or params.mixed_precision == "float32":
            return nullcontext()
        # Without native bf16 a product is hundreds of times slower than in float32.
        if self.device.type != "cuda" or not torch.cuda.is_bf16_supported():
            log.info("training_params.autocast: not used on %s, float32 it is", self.device.type)
            return nullcontext()
        return torch.autocast("cuda", dtype=torch.bfloat16)


def _refuse_other(directory: Path, state: dict[str, Any], key: str, ours: object) -> None:
    if state[key] != ours:
        raise UserError(
            f"{directory} holds checkpoints with {key} = {state[key]!r}; must be {ours!r}, "
            "as configured; train in another directory"
        )
