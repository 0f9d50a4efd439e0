"""How large a GPT is and what it costs to train, from its shape alone."""

from __future__ import annotations

from trainer.config import GPTConfig


def parameter_count(config: GPTConfig) -> int:
    """Return how many numbers a GPT of this shape learns; a tied head counts once."""
    width = config.n_embd
    block = 4 * width**2 + 3 * width * config.ffn_width + 2 * width
    tables = (1 if config.tie_embeddings else 2) * config.vocab_size * width
    return config.n_layer * block + tables + width


def flops_per_token(config: GPTConfig, context: int) -> int:
    """Return the FLOPs of training on one token: forward, and twice that for backward.

    Counts matrix products only (2 FLOPs per multiply-add): weights, head, and causal attention at
    its mean length of context / 2. What activation checkpointing does again is not counted.
    """
    width = config.n_embd
    weights = config.n_layer * (4 * width**2 + 3 * width * config.ffn_width)
    attention = config.n_layer * 2 * (context // 2) * width
    return 6 * (weights + config.vocab_size * width + attention)
