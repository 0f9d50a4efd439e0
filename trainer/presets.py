"""The models of ``conf/model`` from Python, without a YAML parser; a test keeps the two equal.

    GPT(SIZES["gpt-small"], context=1024)

Their vocabulary is GPT-2's; ``dataclasses.replace(size, vocab_size=256)`` takes bytes.
"""

from __future__ import annotations

from trainer.config import GPTConfig
from trainer.data.sources import TOKENIZERS

_VOCABULARY = TOKENIZERS["gpt2"]

SIZES = {
    "nano": GPTConfig(n_embd=64, n_layer=3, n_head=4, vocab_size=_VOCABULARY),
    "micro": GPTConfig(n_embd=128, n_layer=4, n_head=4, vocab_size=_VOCABULARY),
    "gpt-tiny": GPTConfig(n_embd=256, n_layer=2, n_head=4, vocab_size=_VOCABULARY),
    "gpt-small": GPTConfig(n_embd=768, n_layer=12, n_head=12, vocab_size=_VOCABULARY),
    "gpt-medium": GPTConfig(n_embd=1024, n_layer=24, n_head=16, vocab_size=_VOCABULARY),
    "gpt-large": GPTConfig(n_embd=1280, n_layer=36, n_head=20, vocab_size=_VOCABULARY),
}
