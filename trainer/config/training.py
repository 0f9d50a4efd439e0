"""The group ``training``: how long and in what batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rundir.errors import require


@dataclass(frozen=True)
class TrainingParams:
    """How long and in what batches to train."""

    tokens_processed: int = 4096
    """Tokens per optimizer step, over all ranks; a multiple of batch_size x context_length."""
    val_tokens_processed: int = 32768
    """Tokens of the validation split that a validation reads; all of it when it holds fewer."""
    batch_size: int = 16
    """Sequences per micro-batch, over all ranks; gradients accumulate over those of a step."""
    num_epochs: int = 1
    """Passes over the training split, unless max_steps is given."""
    context_length: int = 128
    """Tokens per sequence."""
    gradnorm: float = 1.0
    """Global gradient norm to clip to; 0 does not clip."""
    tensorcore_precision: Literal["highest", "high", "medium"] = "high"
    """Precision of float32 matrix products on CUDA; CPUs always use full float32."""
    autocast: bool = True
    """Mixed precision on CUDA; CPUs stay in float32."""
    mixed_precision: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type that autocast computes in; float32 is no autocast. With float16 the loss is scaled, and
    a step whose gradients leave its range is left out and the scale halved, which waits for the
    device in every step."""
    compile: bool = False
    """torch.compile the model; a CPU needs a C++ compiler for it. Runs share what was compiled."""
    activation_checkpointing: bool = False
    """Keep only each block's input and compute the block again in backward: less memory, a third
    more work."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several ranks hold the model: each a copy, or each its part of every weight, gradient and
    optimizer state (FSDP2), for what does not fit one GPU. One rank holds it whole anyway."""
    deterministic: bool = False
    """Only algorithms that give the same bits each time; an operation without one ends the run."""
    profile_steps: int = 0
    """Steps to record with torch.profiler once three are done: profile/trace.json, and a table in
    the log; 0 records none."""
    max_steps: int | None = None
    """Optimizer steps to train, however many passes that is; null trains num_epochs passes."""
    non_finite: Literal["diverge", "skip"] = "diverge"
    """What a loss or gradient that is not finite does: end the run as diverged, or leave weights
    and optimizer state as they are and go on with the next step. On CUDA skip waits for the
    device in every step."""
    max_skipped_steps: int = 100
    """Steps in a row that may be skipped; one more ends the run as diverged."""

    def __post_init__(self) -> None:
        for name in (
            "tokens_processed",
            "val_tokens_processed",
            "batch_size",
            "num_epochs",
            "context_length",
            "max_skipped_steps",
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.gradnorm >= 0, "gradnorm", self.gradnorm, "at least 0 (0 does not clip)")
        require(self.profile_steps >= 0, "profile_steps", self.profile_steps, "at least 0")
        require(
            self.parallel == "ddp" or self.mixed_precision != "float16",
            "mixed_precision",
            self.mixed_precision,
            "bfloat16 or float32 where parallel is fsdp: ranks would not agree on the loss's scale",
        )
        at_least_one = self.max_steps is None or self.max_steps >= 1
        require(at_least_one, "max_steps", self.max_steps, "at least 1, or null")
        batch = self.batch_size * self.context_length
        require(
            self.tokens_processed % batch == 0,
            "tokens_processed",
            self.tokens_processed,
            f"a multiple of batch_size x context_length = {self.batch_size} x "
            f"{self.context_length} = {batch}",
        )
        require(
            self.val_tokens_processed >= self.context_length,
            "val_tokens_processed",
            self.val_tokens_processed,
            f"at least context_length = {self.context_length}",
        )
