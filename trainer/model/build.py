"""From a configuration to a network."""

from __future__ import annotations

from trainer.config import GPTConfig, HuggingFaceConfig
from trainer.model.gpt import GPT
from trainer.model.hugging_face import HuggingFaceModel

LanguageModel = GPT | HuggingFaceModel
"""Called with tokens it returns logits, and with targets too the loss; it has ``config``,
``context``, ``activation_checkpointing``, ``parameter_count`` and ``flops_per_token(context)``."""


def build_model(config: GPTConfig | HuggingFaceConfig, context: int) -> LanguageModel:
    """Build with random weights from torch's global generator, on the CPU.

    Args:
        config: the group ``model``.
        context: the longest sequence it will see.

    Raises:
        UserError: transformers refuses the settings of one of its networks.
    """
    if isinstance(config, HuggingFaceConfig):
        return HuggingFaceModel(config, context)
    return GPT(config, context)
