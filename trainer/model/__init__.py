"""The networks: GPTs of ours, and any causal language model of transformers'."""

from trainer.model.counts import flops_per_token, parameter_count
from trainer.model.gpt import GPT
from trainer.model.rotary import Rotary

__all__ = ["GPT", "Rotary", "flops_per_token", "parameter_count"]
