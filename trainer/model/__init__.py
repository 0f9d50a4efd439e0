"""The networks: GPTs of ours, and any causal language model of transformers'."""

from trainer.model.build import LanguageModel, build_model
from trainer.model.counts import flops_per_token, parameter_count
from trainer.model.gpt import GPT
from trainer.model.hugging_face import HuggingFaceModel
from trainer.model.rotary import Rotary

__all__ = [
    "GPT",
    "HuggingFaceModel",
    "LanguageModel",
    "Rotary",
    "build_model",
    "flops_per_token",
    "parameter_count",
]
