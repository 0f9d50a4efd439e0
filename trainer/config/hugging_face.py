"""The group ``model``: a causal language model of transformers', built from its configuration."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

from rundir.errors import IllegalValue, brings, nearest, require
from trainer.config.architectures import architecture

_OWN = {
    "vocab_size": "set as model.config.vocab_size",
    "model_type": "set as model.config.architecture",
    "dtype": "left out: weights are float32, and autocast follows training_params",
}
"""Keys of transformers' configurations that are ours to set, and how."""

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What configurations call the longest sequence."""


@dataclass(frozen=True)
class HuggingFaceConfig:
    """A network of transformers' with random weights; nothing is downloaded."""

    architecture: str
    """transformers' ``model_type``, e.g. ``qwen2_moe``, ``llama`` or ``gpt2``."""
    vocab_size: int
    """Rows of the embedding; at least the tokenizer's vocabulary."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Keys of that architecture's configuration; the others have transformers' defaults."""
    separate_experts: bool = True
    """Make each expert's matrices parameters of their own, so that matrix optimizers act on them;
    false keeps transformers' three-dimensional stacks, which are everything else to them."""

    def __post_init__(self) -> None:
        require(self.vocab_size >= 1, "vocab_size", self.vocab_size, "at least 1")
        missing = importlib.util.find_spec("transformers") is None
        bring = f"left out: transformers is not installed; {brings('hf')}"
        require(not missing, "architecture", self.architecture, bring)
        legal = architecture(self.architecture).names
        known = self.architecture in legal
        kind = f"the model_type of one of transformers' {len(legal)} causal language models"
        require(known, "architecture", self.architecture, kind + _hint(self.architecture, legal))
        for key, value in self.overrides.items():
            self._check(str(key), value)

    def _check(self, key: str, value: object) -> None:
        name, legal = f"overrides.{key}", self._defaults
        if key in _OWN:
            raise IllegalValue(name, value, _OWN[key])
        kind = f"a key of {self.architecture}'s configuration"
        require(key in legal, name, value, kind + _hint(key, legal))
        wanted = _wanted(legal[key], value)
        require(not wanted, name, value, wanted)

    @property
    def _defaults(self) -> dict[str, Any]:
        return architecture(self.architecture).defaults or {}

    @property
    def longest_context(self) -> int | None:
        """The longest sequence that it can read; None where its configuration names none."""
        settings = self._defaults | self.overrides
        return next((settings[key] for key in _LENGTHS if key in settings), None)


def _hint(word: str, legal: Any) -> str:
    guess = nearest(word, legal)
    return f"; did you mean {guess}?" if guess else ""


def _wanted(default: object, value: object) -> str:
    """Say what a value should be instead, going by the default's type; empty where it may stand."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is None or default is None:
        return ""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return "" if number and isinstance(value, int) else "a whole number"
    if isinstance(default, float):
        return "" if number else "a number"
    return ""
