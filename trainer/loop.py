"""The training loop: build, resume, then step, log, validate and save until the last step."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass

import torch

from rundir import Diverged, Preempted, Run
from trainer.checkpoints import Keeper
from trainer.compute.determinism import be_deterministic
from trainer.compute.profiling import Stepper, profiling
from trainer.compute.throughput import Pace, forget_peak_memory, peak_flops, peak_memory
from trainer.config import TrainConfig
from trainer.loggers import Relay, relaying
from trainer.parallel import joined
from trainer.training import Training, Update

log = logging.getLogger(__name__)

VALIDATIONS = 10
"""How many a run has when ``val_step`` is null."""


def train(config: TrainConfig, run: Run) -> None:
    """Train from the newest good checkpoint, or from step 0, to the last step.

    Raises:
        UserError: the data is too short, a package is missing, or there is no such device here.
        Diverged: the loss is not finite.
        Preempted: ``run``, on any of its ranks, was asked to stop; the checkpoint is written.
        RanksLost: another rank is gone.
    """
    torch.set_num_threads(run.threads)
    config.check_ranks(run.world_size)
    be_deterministic(config.training.deterministic)
    with joined(run, config.device) as ranks:
        forget_peak_memory(ranks.device)
        training = Training(config, ranks)
        with closing(training), Keeper(training, run) as keeper:
            _train(config, run, training, keeper)


def _train(config: TrainConfig, run: Run, training: Training, keeper: Keeper) -> None:
    step = keeper.resume()
    _introduce(config, training, step, run.threads)
    # Rank 0's steps stand for all.
    profiled = 0 if run.rank else config.training.profile_steps
    with (
        relaying(config, run, step) as records,
        profiling(profiled, run.path, training.device) as profile,
    ):
        _Loop(config, run, training, keeper, records, profile).run(step)


class _Loop:
    """The steps of one attempt."""

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        training: Training,
        keeper: Keeper,
        records: Relay,
        profile: Stepper,
    ) -> None:
        self._run, self._training, self._keeper, self._records = run, training, keeper, records
        self._profile, self._profiles = profile, config.training.profile_steps > 0
        self._total = training.total_steps
        self._due = _Due.of(config, self._total)
        self._pace = _pace(config, training)

    def run(self, step: int) -> None:
        """Take the steps that follow ``step`` done ones, until the last."""
        run, training, due, pace = self._run, self._training, self._due, self._pace
        run.progress(step, self._total)
        if step and not self._keeper.is_validated(step):  # a stop has cut its validation off
            self._validate_and_save(step)
        while step < self._total:
            self._stop_if_asked(step)
            update = training.step(step)
            step += 1
            pace.count()
            # Also before the clock stops: what the device still has to do takes its time too.
            looks = training.reads_are_free or due.any(step)
            fault = training.watch.fault() if looks else None
            if fault or due.log(step):
                self._report(update, step)
            if fault:
                raise Diverged(fault)
            self._validate_and_save(step)
            if self._profiles:
                with pace.paused():  # once it writes its trace, for seconds
                    self._profile.step()
        self._keeper.finish()

    def _validate_and_save(self, step: int) -> None:
        """Do what is due after ``step`` steps."""
        if self._due.validate(step):
            with self._pace.paused():
                self._validate(step)
        if self._due.save(step) or self._keeper.is_best(step):
            with self._pace.paused():
                self._keeper.save(step)

    def _asked_to_stop(self) -> str | None:
        """Return why, the same on all ranks; raise what writing a checkpoint failed with."""
        return self._training.ranks.agreed(self._run.stop_requested, self._keeper.fault())

    def _stop_if_asked(self, step: int) -> None:
        stop = self._asked_to_stop()
        if stop:
            self._keeper.save(step)
            self._keeper.finish()
            raise Preempted(f"{stop} at step {step} of {self._total}; checkpoint written")

    def _report(self, update: Update, step: int) -> None:
        training, pace = self._training, self._pace
        loss, norm = update.loss.item(), update.grad_norm.item()
        figures = pace.take() | training.figures()
        memory = peak_memory(training.device)
        if memory is not None:
            figures["memory"] = memory
        if update.step_scale is not None:
            figures["step_size"] = update.lr * update.step_scale.item()
        figures["tokens"] = step * pace.tokens_per_step
        speed = figures["tokens_per_second"]
        self._record("train", step, loss=loss, lr=update.lr, grad_norm=norm, **figures)
        self._run.progress(step, self._total, loss=loss, tokens_per_second=speed)
        log.info("step %d: loss %.4f, %.0f tokens/s", step, loss, speed)

    def _validate(self, step: int) -> None:
        loss = self._training.validation_loss(lambda: self._asked_to_stop() is not None)
        if loss is None:  # whoever goes on from the checkpoint of this step validates first
            self._stop_if_asked(step)
        else:
            self._record("val", step, loss=loss)
            self._keeper.validated(step, loss)
            log.info("step %d: validation loss %.4f", step, loss)

    def _record(self, stream: str, step: int, **metrics: float) -> None:
        self._run.log(stream, step, **metrics)
        self._records.log(stream, step, **metrics)


def _introduce(config: TrainConfig, training: Training, step: int, threads: int) -> None:
    context = config.training.context_length
    log.info(
        "%s: %d parameters, %.1f MFLOPs a token; %d training tokens; "
        "rank %d of %d on %s, %d threads; step %d of %d",
        config.model_name,
        training.model.parameter_count,
        training.model.flops_per_token(context) / 1e6,
        training.train_tokens,
        training.ranks.rank,
        training.ranks.size,
        training.device,
        threads,
        step,
        training.total_steps,
    )


def _pace(config: TrainConfig, training: Training) -> Pace:
    peak = peak_flops(training.device)
    return Pace(
        config.training.tokens_processed,
        training.model.flops_per_token(config.training.context_length),
        None if peak is None else peak * training.ranks.size,
    )


@dataclass(frozen=True)
class _Due:
    """Which steps log, validate and save. The last one does all of it."""

    total: int
    log_step: int
    val_step: int
    save_step: int
    """0 never saves."""

    @classmethod
    def of(cls, config: TrainConfig, total: int) -> _Due:
        """Read the intervals from the configuration."""
        logging_ = config.logging
        val_step = logging_.val_step or max(1, round(total / VALIDATIONS))
        return cls(total, logging_.log_step, val_step, logging_.save_ckpt_step)

    def log(self, step: int) -> bool:
        """Whether the training loss of this step is recorded; the first one's is."""
        return step == 1 or step % self.log_step == 0 or step == self.total

    def validate(self, step: int) -> bool:
        """Whether validation follows this step."""
        return step % self.val_step == 0 or step == self.total

    def save(self, step: int) -> bool:
        """Whether a checkpoint follows this step."""
        return self.save_step > 0 and (step % self.save_step == 0 or step == self.total)

    def any(self, step: int) -> bool:
        """Whether anything does."""
        return self.log(step) or self.validate(step) or self.save(step)
