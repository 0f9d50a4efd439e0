"""The group ``model``: the shape of a network."""

from __future__ import annotations

from dataclasses import dataclass

from rundir.errors import require


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
