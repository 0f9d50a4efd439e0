"""Model, optimizer and data of one run: a step or a validation at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from rundir.errors import IllegalValue
from trainer.compute.compilation import can_compile, choose_cache, compiled
from trainer.compute.precision import Precision
from trainer.compute.rows import row_threads
from trainer.config import TrainConfig
from trainer.data.batches import Batch, cut, most_validation_batches, validation_batches
from trainer.data.corpus import load_corpus
from trainer.data.prefetch import training_batches
from trainer.model import build_model
from trainer.model.gpt import Block
from trainer.optim import build_optimizer, lr_factor
from trainer.optim.clipping import FoldsClip
from trainer.optim.truncation import Truncating
from trainer.parallel import Ranks, accumulating
from trainer.watch import Watch

if TYPE_CHECKING:
    from trainer.sharding import Shards


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
    step_scale: torch.Tensor | None = None
    """What part of it the update took, where the optimizer decides on that at each step; None where
    it does not, or where the update was not taken. Read it before the next step."""


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
        if config.training.compile:
            choose_cache()
        torch.manual_seed(config.seed)
        corpus = load_corpus(config.data)
        self.train_tokens, self._validation = len(corpus.train), corpus.validation
        self.content, self.origin = corpus.content, corpus.origin
        config.check_length(corpus.sizes)
        self.total_steps = config.total_steps(len(corpus.train))
        params = config.training
        self._batches = training_batches(
            corpus.train, config, self.total_steps, device, rank=ranks.rank, world=ranks.size
        )
        self.model = build_model(config.model, params.context_length).to(device)
        self.model.activation_checkpointing = params.activation_checkpointing
        self._shards = self._cut()
        self.stepped: nn.Module = self.model if self._shards is None else self._shards.parts
        """What the optimizer steps: the model, or this rank's parts of its weights under the same
        names."""
        self.optimizer = self._built_optimizer()
        self._averaging = self.model if self._shards else ranks.averaging(self.model)
        self._forward = self.model if self._shards else self._compiled(self.model)
        is_averaging = self._averaging is not self.model
        self._training_forward = self._compiled(self._averaging) if is_averaging else self._forward
        is_whole = self._training_forward is self.model and not self._shards
        self._rows = row_threads(self.model, device) if is_whole else None
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
        parts = self._batches.micro_batches(step)
        for number, batch in enumerate(parts, start=1):
            with accumulating(self._averaging, last=number == micro_batches):
                loss += self._backward(batch, micro_batches)
        loss = self.ranks.mean(loss)
        if self._shards is not None:
            self._shards.take_gradients()
        overflowed = self.precision.overflowed(self.optimizer)
        norm = self._clip(params.gradnorm or float("inf"))
        # Of a step that fp16's scale was too large for, only the loss must be finite.
        judged = torch.zeros_like(norm) if overflowed else norm
        scale = None
        if self.watch.lets_pass(step + 1, loss, judged) and not overflowed:
            # A tensor: some steps depend on the loss, and none has to wait for it.
            self.optimizer.step(lambda: loss)  # type: ignore[arg-type, return-value]
            scale = self.optimizer.step_scale if isinstance(self.optimizer, Truncating) else None
        elif isinstance(self.optimizer, FoldsClip):
            self.optimizer.forget()
        self.optimizer.zero_grad()
        return Update(loss, norm, lr, scale)

    def close(self) -> None:
        """End the thread that makes batches, wherever it is."""
        self._batches.close()

    def validation_loss(self, is_stopped: Callable[[], bool] = lambda: False) -> float | None:
        """Return the mean loss in nats per token over the same windows each time.

        Args:
            is_stopped: asked before each batch, on all ranks as often; the same answer on all. Yes
                ends the validation, which then returns None.
        """
        params, world = self.config.training, self.ranks.size
        total, count = torch.zeros((), device=self.device), 0
        split = (
            self._validation,
            params.context_length,
            params.batch_size // world,
            params.val_tokens_processed,
        )
        batches = validation_batches(*split, rank=self.ranks.rank, world=world)
        with self._validating():
            for _ in range(most_validation_batches(*split, world=world)):
                if is_stopped():
                    return None
                batch = next(batches, None)
                if batch is not None:
                    total += self._loss(self._forward, batch) * batch[0].numel()
                    count += batch[0].numel()
                elif self._shards is not None:
                    # All ranks gather a block's weights: who has no batch passes one in vain.
                    spare = np.zeros(1, dtype=np.int64)
                    self._loss(self._forward, cut(self._validation, spare, params.context_length))
        sums = torch.stack((total.double(), total.new_tensor(count, dtype=torch.float64)))
        whole, tokens = self.ranks.sum(sums).tolist()
        return float(whole / tokens)

    @contextmanager
    def _validating(self) -> Iterator[None]:
        """Have the weights to validate in the model until the block ends, and no gradients."""
        self.model.eval()
        if isinstance(self.optimizer, Averaging):
            self.optimizer.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train()
            if isinstance(self.optimizer, Averaging):
                self.optimizer.train()

    def state_dicts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the states of model and optimizer, as a run of one process has them.

        All ranks call it; where each holds only its part, only rank 0 gets the tensors. Otherwise
        they are the run's own, not copies.
        """
        if self._shards is not None:
            return self._shards.state_dicts(self.optimizer)
        return self.model.state_dict(), self.optimizer.state_dict()

    def load_state_dicts(self, model: dict[str, Any], optimizer: dict[str, Any]) -> None:
        """Go on from such states, whatever number of ranks they were saved by."""
        if self._shards is not None:
            self._shards.load_state_dicts(self.optimizer, model, optimizer)
            return
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)

    def figures(self) -> dict[str, float]:
        """Return what is recorded beside a step's loss where the configuration asks for it."""
        return self.watch.figures() | self.precision.figures()

    def _loss(self, forward: Callable[..., Any], batch: Batch) -> torch.Tensor:
        inputs, targets = (part.to(self.device, non_blocking=True) for part in batch)
        with self.precision.autocast():
            loss: torch.Tensor = forward(inputs, targets)
        return loss

    def _backward(self, batch: Batch, micro_batches: int) -> torch.Tensor:
        """Add the gradient of a micro-batch's part in the step's loss; return that part."""
        scaled = self.precision.scaler is not None
        if self._rows is not None and not scaled and self._rows.fits(len(batch[0])):
            loss_of = partial(self._loss, self._training_forward)
            return self._rows.backward(loss_of, batch, micro_batches)
        part = self._loss(self._training_forward, batch) / micro_batches
        self.precision.backward(part)
        return part.detach()

    def _clip(self, limit: float) -> torch.Tensor:
        """Clip the gradient of the coming step and return its norm before."""
        own = limit if self._shards is None else float("inf")
        if isinstance(self.optimizer, FoldsClip):
            norm = self.optimizer.clip_grad_norm(own)
        else:
            norm = nn.utils.clip_grad_norm_(self.stepped.parameters(), own)
        if self._shards is None:
            return norm
        norm = self.ranks.sum(norm.square()).sqrt()
        nn.utils.clip_grads_with_norm_(self.stepped.parameters(), limit, norm)
        return norm

    def _built_optimizer(self) -> torch.optim.Optimizer:
        try:
            return build_optimizer(self.stepped, self.config.optimizer)
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

    def _cut(self) -> Shards | None:
        """Cut the model into the ranks' parts, where that is asked for and there are several."""
        params = self.config.training
        if params.parallel == "ddp" or self.ranks.size == 1:
            return None
        from trainer.sharding import Shards  # 0.6 s

        blocks: list[nn.Module] = [
            module for module in self.model.modules() if isinstance(module, Block)
        ]
        # First, and each by itself: the gathering between them can't be compiled.
        if params.compile and can_compile(self.device):
            for block in blocks:
                block.compile()
        return Shards(self.model, blocks, self.device)

    def _compiled(self, model: nn.Module) -> Callable[..., Any]:
        return compiled(model, self.device) if self.config.training.compile else model
