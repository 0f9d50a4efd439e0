"""Model, optimizer and data of one run: a step or a validation at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from rundir.errors import IllegalValue
from trainer.compilation import compiled
from trainer.config import TrainConfig
from trainer.data.batches import Batch, validation_batches
from trainer.data.corpus import load_corpus
from trainer.data.prefetch import training_batches
from trainer.determinism import be_deterministic
from trainer.model import build_model
from trainer.optim import build_optimizer, lr_factor
from trainer.optim.clipping import FoldsClip
from trainer.parallel import Ranks, accumulating
from trainer.precision import Precision
from trainer.watch import Watch


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
        be_deterministic(config.training.deterministic)
        torch.manual_seed(config.seed)
        corpus = load_corpus(config.data)
        self.train_tokens, self._validation = len(corpus.train), corpus.validation
        config.check_length(corpus.sizes)
        self.total_steps = config.total_steps(len(corpus.train))
        params = config.training
        self._batches = training_batches(
            corpus.train, config, self.total_steps, device, rank=ranks.rank, world=ranks.size
        )
        self.model = build_model(config.model, params.context_length).to(device)
        self.model.activation_checkpointing = params.activation_checkpointing
        self.optimizer = self._built_optimizer()
        self._averaging = ranks.averaging(self.model)
        self._forward = self._compiled(self.model)
        self._training_forward = (
            self._forward if ranks.size == 1 else self._compiled(self._averaging)
        )
        self.precision = Precision(params, device)
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
        parts = self._batches(step)
        for number, batch in enumerate(parts, start=1):
            with accumulating(self._averaging, last=number == micro_batches):
                part = self._loss(self._training_forward, batch) / micro_batches
                self.precision.backward(part)
            loss += part.detach()
        loss = self.ranks.mean(loss)
        overflowed = self.precision.overflowed(self.optimizer)
        norm = self._clip(params.gradnorm or float("inf"))
        # Of a step that fp16's scale was too large for, only the loss must be finite.
        judged = torch.zeros_like(norm) if overflowed else norm
        if self.watch.lets_pass(step + 1, loss, judged) and not overflowed:
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

    def figures(self) -> dict[str, float]:
        """Return what is recorded beside a step's loss where the configuration asks for it."""
        return self.watch.figures() | self.precision.figures()

    def _loss(self, forward: Callable[..., Any], batch: Batch) -> torch.Tensor:
        inputs, targets = (part.to(self.device, non_blocking=True) for part in batch)
        with self.precision.autocast():
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

    def _set_lr(self, step: int) -> float:
        optimizer = self.config.optimizer
        factor = lr_factor(
            optimizer.lr_schedule, step, self.total_steps, optimizer.warm_up_fraction
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return optimizer.lr * factor

    def _compiled(self, model: torch.nn.Module) -> Callable[..., Any]:
        return compiled(model, self.device) if self.config.training.compile else model
