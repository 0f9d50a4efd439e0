# ruff: noqa: N803, N806, N815 - tensor names end in their shape
"""A GPT with RMSNorm, SwiGLU and rotary positions.

Shapes: B batch, T time, D model width, H heads, K head width (D / H), F SwiGLU width, V vocabulary.
Weights are (out, in). All 2-D ones but ``embed_tokens`` and ``lm_head`` are what the matrix
optimizers (Muon, DAP) act on.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from trainer.config import GPTConfig

INIT_STD = 0.02
"""Of every weight; the projections into the residual stream get it divided by sqrt(2 n_layer)."""


class RMSNorm(nn.Module):
    """Root-mean-square normalization (arXiv 1910.07467) over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (..., D) at root mean square 1, times the weight."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Rotary(nn.Module):
    """Rotary positions (arXiv 2104.09864), as Llama pairs them: component i with i + K/2."""

    cos_TK: torch.Tensor
    sin_TK: torch.Tensor

    def __init__(self, head_width: int, context: int, theta: float) -> None:
        super().__init__()
        frequency = theta ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
        angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency)
        sine = angle.sin().float()
        self.register_buffer("cos_TK", torch.cat((angle.cos(),) * 2, -1).float(), persistent=False)
        self.register_buffer("sin_TK", torch.cat((-sine, sine), -1), persistent=False)

    def forward(self, x_BTHK: torch.Tensor) -> torch.Tensor:
        """Turn each pair of components by its frequency times the position."""
        time = x_BTHK.shape[1]
        cos, sin = self.cos_TK[:time, None], self.sin_TK[:time, None]
        first, second = x_BTHK.chunk(2, dim=-1)
        swapped = torch.cat((second, first), dim=-1)
        return (x_BTHK * cos + swapped * sin).to(x_BTHK.dtype)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: GPTConfig, context: int) -> None:
        super().__init__()
        width = config.n_embd
        self.heads, self.head_width = config.n_head, width // config.n_head
        self.fused = config.flash_attention
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)
        self.rotary = Rotary(self.head_width, context, config.rope_theta)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Mix each position with those before it."""
        batch, time, width = x_BTD.shape
        qkv = self.c_attn(x_BTD).view(batch, time, 3 * self.heads, self.head_width)
        qk, v_BTHK = qkv.split((2 * self.heads, self.heads), dim=2)
        q_BHTK, k_BHTK = self.rotary(qk).transpose(1, 2).split(self.heads, dim=1)
        v_BHTK = v_BTHK.transpose(1, 2)
        attend = functional.scaled_dot_product_attention if self.fused else _spelled_out_attention
        y_BHTK = attend(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        projected: torch.Tensor = self.c_proj(y_BHTK.transpose(1, 2).reshape(batch, time, width))
        return projected


def _spelled_out_attention(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor, *, is_causal: bool
) -> torch.Tensor:
    """Attention with its (T, T) weights in memory; the reference for the fused one."""
    score_BHTT = q_BHTK @ k_BHTK.mT / math.sqrt(q_BHTK.shape[-1])
    if is_causal:
        time = q_BHTK.shape[-2]
        future = torch.ones(time, time, dtype=torch.bool, device=q_BHTK.device).triu(1)
        score_BHTT = score_BHTT.masked_fill(future, float("-inf"))
    return score_BHTT.softmax(dim=-1) @ v_BHTK


class SwiGLU(nn.Module):
    """Gated feed-forward layer (arXiv 2002.05202)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.ffn_width, bias=False)
        self.c_gate = nn.Linear(config.n_embd, config.ffn_width, bias=False)
        self.c_proj = nn.Linear(config.ffn_width, config.n_embd, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return (silu(gate) * fc) projected back, per position."""
        y_BTD: torch.Tensor = self.c_proj(functional.silu(self.c_gate(x_BTD)) * self.c_fc(x_BTD))
        return y_BTD


class Block(nn.Module):
    """Attention and SwiGLU, each on a normalized input and added to the residual stream."""

    def __init__(self, config: GPTConfig, context: int) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.n_embd, config.norm_eps)
        self.attn = Attention(config, context)
        self.ln_2 = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return the residual stream after this block."""
        x_BTD = x_BTD + self.attn(self.ln_1(x_BTD))
        x_BTD = x_BTD + self.mlp(self.ln_2(x_BTD))
        return x_BTD  # noqa: RET504 - the two residual lines read alike


class GPT(nn.Module):
    """Decoder-only transformer language model."""

    def __init__(self, config: GPTConfig, context: int) -> None:
        """Build with random weights from torch's global generator.

        Args:
            config: the shape.
            context: the longest sequence it will see, T.
        """
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, context) for _ in range(config.n_layer))
        self.ln_f = RMSNorm(config.n_embd, config.norm_eps)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self._draw_weights()

    def _draw_weights(self) -> None:
        residual = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=residual if "c_proj" in name else INIT_STD)

    def forward(
        self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the logits (B, T, V), or with targets the mean loss in nats per token, float32."""
        x_BTD = self.embed_tokens(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV: torch.Tensor = self.lm_head(self.ln_f(x_BTD))
        if targets_BT is None:
            return logits_BTV
        return functional.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten())


def parameter_count(config: GPTConfig) -> int:
    """Return how many numbers a GPT of this shape learns; a tied head counts once."""
    width = config.n_embd
    block = 4 * width**2 + 3 * width * config.ffn_width + 2 * width
    tables = (1 if config.tie_embeddings else 2) * config.vocab_size * width
    return config.n_layer * block + tables + width


def flops_per_token(config: GPTConfig, context: int) -> int:
    """Return the FLOPs of training on one token: forward, and twice that for backward.

    Counts matrix products only (2 FLOPs per multiply-add): weights, head, and causal attention at
    its mean length of context / 2.
    """
    width = config.n_embd
    weights = config.n_layer * (4 * width**2 + 3 * width * config.ffn_width)
    attention = config.n_layer * 2 * (context // 2) * width
    return 6 * (weights + config.vocab_size * width + attention)
