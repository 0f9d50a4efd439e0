"""What one training run is: a dataclass per config group, checked without torch or numpy.

:meth:`TrainConfig.from_mapping` reads the nested mapping that users write in YAML (the keys are
GPT-opt's); the dataclasses have defaults for use from Python.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rundir import UserError, unknown
from rundir.errors import IllegalValue, require
from trainer.data.sources import DATASETS, TOKENIZERS, count_tokens, split
from trainer.fields import from_mapping
from trainer.optim.params import OptimizerParams, optimizer_params


@dataclass(frozen=True)
class GPTConfig:
    """Shape of a GPT with RMSNorm, SwiGLU and rotary positions."""

    n_embd: int = 64
    """Model width; a multiple of ``n_head``, an even number of times."""
    n_layer: int = 3
    """Transformer blocks."""
    n_head: int = 4
    """Attention heads of width n_embd / n_head."""
    vocab_size: int = 256
    """Rows of the embedding; at least the tokenizer's vocabulary."""
    flash_attention: bool = True
    """Fused attention (scaled_dot_product_attention); false spells the softmax out."""
    ffn_multiple_of: int = 1
    """floor(8/3 n_embd), the SwiGLU width, goes up to a multiple of this; 128 aligns rows."""
    tie_embeddings: bool = True
    """Whether the output head shares the embedding's weight."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths, in positions."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""

    def __post_init__(self) -> None:
        for name in ("n_embd", "n_layer", "n_head", "vocab_size", "ffn_multiple_of"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(
            self.n_embd % (2 * self.n_head) == 0,
            "n_embd",
            self.n_embd,
            f"a multiple of 2 x n_head = {2 * self.n_head} (rotary positions turn pairs)",
        )
        require(self.rope_theta > 1, "rope_theta", self.rope_theta, "above 1")
        require(self.norm_eps > 0, "norm_eps", self.norm_eps, "above 0")

    @property
    def ffn_width(self) -> int:
        """Inner width of SwiGLU: floor(8/3 n_embd), up to a multiple of ``ffn_multiple_of``."""
        return -(-(8 * self.n_embd // 3) // self.ffn_multiple_of) * self.ffn_multiple_of


@dataclass(frozen=True)
class DatasetConfig:
    """Which tokens to train on; the last tenth is the validation split."""

    name: str = "shakespeare"
    """``shakespeare`` (nine plays, part of the package) or ``text`` (your UTF-8 files)."""
    tokenizer: str = "bytes"
    """``bytes`` (256 tokens) or ``gpt2`` (50257; needs the extra ``[gpt2]``)."""
    vocab_size: int | None = None
    """For models to refer to; null takes the tokenizer's."""
    path: str | None = None
    """``text`` only: a file, a glob, or a directory whose *.txt are read; in sorted order."""
    vocab_bpe: str | None = None
    """``gpt2`` only: GPT-2's vocab.bpe, for machines that can't download it."""

    def __post_init__(self) -> None:
        if self.name not in DATASETS:
            raise unknown("dataset", self.name, DATASETS)
        if self.tokenizer not in TOKENIZERS:
            raise unknown("tokenizer", self.tokenizer, TOKENIZERS)
        least = TOKENIZERS[self.tokenizer]
        require(
            self.vocab_size is None or self.vocab_size >= least,
            "vocab_size",
            self.vocab_size,
            f"at least {least}, the vocabulary of tokenizer {self.tokenizer}",
        )
        needs_path = self.name == "text"
        must = "the path of a text file" if needs_path else f"null for dataset {self.name}"
        require(bool(self.path) == needs_path, "path", self.path, must)


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
    mixed_precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Type that autocast computes in; float32 is no autocast."""
    compile: bool = False
    """torch.compile the model on CUDA."""
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


@dataclass(frozen=True)
class LoggingParams:
    """What is written when; changes no result."""

    val_tokens_processed: int | None = None
    """null, or the one of training_params: it changes what validation measures."""
    log_step: int = 8
    """Steps between two records of the training loss."""
    val_step: int | None = None
    """Steps between two validations; null validates ten times. The last step always validates."""
    save_ckpt_step: int = 500
    """Steps between two checkpoints; the last step saves too. 0 saves only when asked to stop."""
    load_ckpt_step: int = 0
    """Must be 0: a run resumes from its newest good checkpoint by itself."""
    keep_last: int = 2
    """Checkpoints to keep; the older ones are what a torn newest one falls back to."""

    def __post_init__(self) -> None:
        for name in ("log_step", "val_step", "keep_last"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        require(self.save_ckpt_step >= 0, "save_ckpt_step", self.save_ckpt_step, "at least 0")
        own = "a run resumes from its newest good checkpoint by itself"
        require(self.load_ckpt_step == 0, "load_ckpt_step", self.load_ckpt_step, f"0: {own}")


def _adamw() -> OptimizerParams:
    return optimizer_params({"name": "adamw"}, "optimizer")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a run needs to know."""

    model: GPTConfig = field(default_factory=GPTConfig)
    data: DatasetConfig = field(default_factory=DatasetConfig)
    training: TrainingParams = field(default_factory=TrainingParams)
    optimizer: OptimizerParams = field(default_factory=_adamw)
    logging: LoggingParams = field(default_factory=LoggingParams)
    model_name: str = "nano"
    """For the log; the shape is what ``model`` says."""
    seed: int = 42
    """Of the initial weights and the order of the data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` is cuda where there is one."""

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        runs = self.device != "cpu" or os.environ.get("TRITON_INTERPRET", "0") == "1"
        require(
            runs or self.optimizer.backend != "triton",
            "optimizer.optimizer_params.backend",
            self.optimizer.backend,
            "auto or torch where device is cpu: Triton needs a CUDA device",
        )
        wanted = self.logging.val_tokens_processed
        require(
            wanted in {None, self.training.val_tokens_processed},
            "logging.logging_params.val_tokens_processed",
            wanted,
            "null; set training.training_params.val_tokens_processed",
        )
        vocabulary = TOKENIZERS[self.data.tokenizer]
        require(
            self.model.vocab_size >= vocabulary,
            "model.config.vocab_size",
            self.model.vocab_size,
            f"at least {vocabulary}, the vocabulary of tokenizer {self.data.tokenizer}",
        )
        tokens = count_tokens(self.data.name, self.data.tokenizer, self.data.path)
        if tokens is not None:
            self.check_length(tokens)

    def check_length(self, tokens: int) -> None:
        """Refuse data of ``tokens`` tokens that holds no whole sequence, or no whole step.

        Raises:
            UserError: the context is too long for a split, or num_epochs passes make no step.
        """
        training = self.training
        longest = min(split(tokens)) - 1
        require(
            training.context_length <= longest,
            "training.training_params.context_length",
            training.context_length,
            f"at most {longest}: {self.data.name} has {tokens} tokens, a tenth for validation",
        )
        require(
            self.total_steps(tokens) >= 1,
            "training.training_params.tokens_processed",
            training.tokens_processed,
            f"at most {training.num_epochs * split(tokens)[0]}, the tokens of "
            f"{training.num_epochs} epoch(s), or max_steps given",
        )

    def check_ranks(self, world_size: int) -> None:
        """Refuse micro-batches that ``world_size`` processes can't share evenly.

        Raises:
            UserError: batch_size is not a multiple of it.
        """
        require(
            self.training.batch_size % world_size == 0,
            "training.training_params.batch_size",
            self.training.batch_size,
            f"a multiple of {world_size}, the processes of the run: "
            "cluster.nodes x cluster.tasks_per_node",
        )

    def total_steps(self, tokens: int) -> int:
        """Optimizer steps of the whole run on data of ``tokens`` tokens."""
        training = self.training
        passes = training.num_epochs * split(tokens)[0] // training.tokens_processed
        return passes if training.max_steps is None else training.max_steps

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> TrainConfig:
        """Build from the nested mapping of a config file.

        Raises:
            UserError: an unknown or missing key, a wrong type, an impossible value.
        """
        legal = ("model", "data", "training", "optimizer", "logging", "seed", "device")
        _keys(config, legal, ("model", "data", "training", "optimizer"), "")
        model = _keys(config["model"], ("name", "config"), ("config",), "model")
        logging = config.get("logging") or {"logging_params": {}}
        scalars = {key: config[key] for key in ("seed", "device") if key in config}
        values = {
            "model": from_mapping(GPTConfig, model["config"], "model.config"),
            "model_name": model.get("name", cls.model_name),
            "data": _nested(DatasetConfig, config["data"], "data", "dataset"),
            "training": _nested(TrainingParams, config["training"], "training", "training_params"),
            "optimizer": optimizer_params(
                _only(config["optimizer"], "optimizer", "optimizer_params"),
                "optimizer.optimizer_params",
            ),
            "logging": _nested(LoggingParams, logging, "logging", "logging_params"),
        }
        return from_mapping(cls, values | scalars, "")


def _nested(cls: type[Any], node: object, group: str, key: str) -> Any:
    return from_mapping(cls, _only(node, group, key), f"{group}.{key}")


def _only(node: object, group: str, key: str) -> Any:
    """Return what a group holds beneath its single key."""
    return _keys(node, (key,), (key,), group)[key]


def _keys(
    node: object, legal: tuple[str, ...], needed: tuple[str, ...], where: str
) -> Mapping[str, Any]:
    if not isinstance(node, Mapping):
        raise IllegalValue(where or "config", node, f"a mapping with keys {', '.join(legal)}")
    for key in node:
        if key not in legal:
            raise unknown("key", str(key), legal, where)
    for key in needed:
        if key not in node:
            raise UserError(f"{where}.{key} is missing; it has no default".lstrip("."))
    return node
