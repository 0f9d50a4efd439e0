"""Everything that one run needs to know, built from the nested mapping of a config file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rundir import UserError, unknown
from rundir.errors import IllegalValue, require
from trainer.config.dataset import DatasetConfig
from trainer.config.device import may_have_cuda, no_cuda
from trainer.config.hugging_face import HuggingFaceConfig
from trainer.config.logging import LoggingParams
from trainer.config.model import GPTConfig
from trainer.config.parallel import refuse_whole_weights
from trainer.config.training import TrainingParams
from trainer.data.sources import TOKENIZERS, Splits, check_contents, sizes
from trainer.fields import from_mapping
from trainer.optim.params import OptimizerParams, optimizer_params


def _adamw() -> OptimizerParams:
    return optimizer_params({"name": "adamw"}, "optimizer")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a run needs to know."""

    model: GPTConfig | HuggingFaceConfig = field(default_factory=GPTConfig)
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
        self._check_model()
        if self.training.parallel == "fsdp":
            refuse_whole_weights(self.optimizer.name)
            ours = isinstance(self.model, GPTConfig)
            must = "ddp for a model of transformers'; fsdp cuts the project's own"
            require(ours, "training.training_params.parallel", "fsdp", must)
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
        known = sizes(self.data.name, self.data.tokenizer, self.data.path)
        if known is not None:
            self.check_length(known)

    def _check_model(self) -> None:
        """Refuse a context that the model is too short for, and muP where there is no rule for it.

        Raises:
            UserError: so, or the optimizer is told another base width than the model.
        """
        if isinstance(self.model, HuggingFaceConfig):
            key, base = "optimizer.optimizer_params.mup_base_n_embd", self.optimizer.mup_base_n_embd
            require(base is None, key, base, "null: muP knows only this project's own GPT")
            context, most = self.training.context_length, self.model.longest_context
            must = f"at most {most}, the positions of {self.model.architecture}"
            fits = most is None or context <= most
            require(fits, "training.training_params.context_length", context, must)
            return
        base = self.model.enable_mup_with_base_n_embd
        key = "model.config.enable_mup_with_base_n_embd"
        name, own = self.optimizer.name, self.optimizer.mup_base_n_embd
        known = base is None or self.optimizer.width_powers is not None
        require(known, key, base, f"null: for {name} no rule of muP is known")
        same = base is None or own in {None, base}
        require(same, key, base, f"{own}, as optimizer.optimizer_params.mup_base_n_embd, or null")

    def check_length(self, tokens: Splits) -> None:
        """Refuse data that holds no whole sequence, or no whole step.

        Raises:
            UserError: the context is too long for a split, or num_epochs passes make no step.
        """
        training = self.training
        longest = min(tokens) - 1
        must = f"longer than {sum(tokens)} tokens"
        require(longest >= 1, "data.dataset", self.data.name, must)
        require(
            training.context_length <= longest,
            "training.training_params.context_length",
            training.context_length,
            f"at most {longest}: {self.data.name} has {sum(tokens)} tokens, "
            f"{self.data.validation_share(tokens)} for validation",
        )
        require(
            self.total_steps(tokens.train) >= 1,
            "training.training_params.tokens_processed",
            training.tokens_processed,
            f"at most {training.num_epochs * tokens.train}, the tokens of "
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

    def check_place(self, *, here: bool) -> None:
        """Refuse what can't be found where runs are launched, or will be.

        Args:
            here: whether they are carried out on this machine.

        Raises:
            UserError: the data is unusable at first sight, or this machine has no such device.
        """
        if here and self.device == "cuda" and not may_have_cuda():
            raise no_cuda()
        check_contents(self.data.name, self.data.path, here=here)

    def total_steps(self, tokens: int) -> int:
        """Optimizer steps of the whole run with ``tokens`` tokens to train on."""
        training = self.training
        passes = training.num_epochs * tokens // training.tokens_processed
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
            "model": from_mapping(_kind(model["config"]), model["config"], "model.config"),
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


def _kind(model: object) -> type[GPTConfig | HuggingFaceConfig]:
    """Return what a model's config describes: a network of ours unless it names another one's."""
    theirs = isinstance(model, Mapping) and "architecture" in model
    return HuggingFaceConfig if theirs else GPTConfig


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
