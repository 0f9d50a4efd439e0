"""The group ``model``: the shape of a network of ours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rundir.errors import require

Rope = Literal["llama", "gptopt"]


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
    rope: Rope = "llama"
    """Rotary positions as in Llama; ``gptopt`` is GPT-opt's formula, which is no rotation, so that
    its results can be had again: everything else is the same model."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths, in positions."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    enable_mup_with_base_n_embd: int | None = None
    """The model width that the learning rate was tuned at. Initial weights, attention and logits
    then follow this model's width as muP says (arXiv 2203.03466), and so do the optimizer's
    learning rates; at that width nothing changes. null is the standard parametrization."""
    mup_base_n_head: int | None = None
    """Heads at that width; null is as many as here. Scores are scaled by 1 / head width from
    there, which matters where heads grow wider rather than more."""

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
        base, heads = self.enable_mup_with_base_n_embd, self.mup_base_n_head
        positive = base is None or base >= 1
        require(positive, "enable_mup_with_base_n_embd", base, "at least 1, or null")
        needs = (
            "null without enable_mup_with_base_n_embd" if base is None else "at least 1, or null"
        )
        legal = heads is None or (base is not None and heads >= 1)
        require(legal, "mup_base_n_head", heads, needs)

    @property
    def ffn_width(self) -> int:
        """Inner width of SwiGLU: floor(8/3 n_embd), up to a multiple of ``ffn_multiple_of``."""
        return -(-(8 * self.n_embd // 3) // self.ffn_multiple_of) * self.ffn_multiple_of

    @property
    def mup_shrink(self) -> float:
        """The base width over this one under muP; 1 without it."""
        base = self.enable_mup_with_base_n_embd
        return 1.0 if base is None else base / self.n_embd

    @property
    def attention_scale(self) -> float | None:
        """What scores are multiplied by: None is 1 / sqrt(K), for head width K.

        Under muP sqrt(K0) / K, where K0 is the head width at the base width.
        """
        if self.enable_mup_with_base_n_embd is None:
            return None
        base_width = self.enable_mup_with_base_n_embd / (self.mup_base_n_head or self.n_head)
        return math.sqrt(base_width) * self.n_head / self.n_embd
