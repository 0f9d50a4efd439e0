# ruff: noqa: N803, N806 - tensor names end in their shape
"""A GPT with RMSNorm, SwiGLU and rotary positions.

Shapes: B batch, T time, D model width, H heads, K head width (D / H), F SwiGLU width, V vocabulary.
Weights are (out, in). All 2-D ones but ``embed_tokens`` and ``lm_head`` are what the matrix
optimizers (Muon, DAP) act on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trainer.compute import recompute
from trainer.config import GPTConfig
from trainer.model.counts import flops_per_token, parameter_count
from trainer.model.rotary import Rotary

ROWS = 64
"""On a GPU weights are multiplied as if their outputs were a multiple of this: rows of 2730 or
50257 half-precision numbers do not begin at multiples of 16 bytes, as the fastest kernels ask."""

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


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: GPTConfig, context: int) -> None:
        super().__init__()
        width = config.n_embd
        self.heads, self.head_width = config.n_head, width // config.n_head
        self.fused = config.flash_attention
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)
        self.scale = config.attention_scale
        self.rotary = Rotary(self.head_width, context, config.rope_theta, config.rope)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Mix each position with those before it."""
        batch, time, width = x_BTD.shape
        qkv = self.c_attn(x_BTD).view(batch, time, 3 * self.heads, self.head_width)
        qk, v_BTHK = qkv.split((2 * self.heads, self.heads), dim=2)
        q_BHTK, k_BHTK = self.rotary(qk).transpose(1, 2).split(self.heads, dim=1)
        v_BHTK = v_BTHK.transpose(1, 2)
        attend = functional.scaled_dot_product_attention if self.fused else _spelled_out_attention
        y_BHTK = attend(q_BHTK, k_BHTK, v_BHTK, is_causal=True, scale=self.scale)
        projected: torch.Tensor = self.c_proj(y_BHTK.transpose(1, 2).reshape(batch, time, width))
        return projected


def _spelled_out_attention(
    q_BHTK: torch.Tensor,
    k_BHTK: torch.Tensor,
    v_BHTK: torch.Tensor,
    *,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Attention with its (T, T) weights in memory; the reference for the fused one."""
    score_BHTT = q_BHTK @ k_BHTK.mT * (q_BHTK.shape[-1] ** -0.5 if scale is None else scale)
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
        rows = missing_rows(self.c_fc.weight)
        # Whoever looks at the layers' inputs is to see those of the layers.
        if rows == 0 or self.c_proj._forward_pre_hooks:  # noqa: SLF001 - they have no public name
            hidden_BTF = functional.silu(self.c_gate(x_BTD)) * self.c_fc(x_BTD)
            y_BTD: torch.Tensor = self.c_proj(hidden_BTF)
            return y_BTD
        gate, fc = (_with_rows(layer.weight, rows) for layer in (self.c_gate, self.c_fc))
        hidden_BTF = functional.silu(functional.linear(x_BTD, gate)) * functional.linear(x_BTD, fc)
        return functional.linear(hidden_BTF, functional.pad(self.c_proj.weight, (0, rows)))


def missing_rows(weight: torch.Tensor) -> int:
    """Return how many outputs a weight on a GPU lacks to a multiple of :data:`ROWS`."""
    return -weight.shape[0] % ROWS if weight.is_cuda else 0


def _with_rows(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """Return it with so many outputs more, which are 0."""
    return functional.pad(weight, (0, 0, 0, rows))


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
        self.config, self.context = config, context
        self.activation_checkpointing = False
        """Whether training keeps only each block's input and computes the rest of its activations
        again on the way back: a third more work, and memory that hardly grows with depth."""
        # A tied head has no learning rate and no initial weights of its own to shrink.
        self._logit_scale = config.mup_shrink if config.tie_embeddings else 1.0
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, context) for _ in range(config.n_layer))
        self.ln_f = RMSNorm(config.n_embd, config.norm_eps)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self._draw_weights()
        # No method of its own, which would keep the model from being freed with its last reader.
        self._loss: Callable[..., torch.Tensor] = _loss_of

    def compile_parts(self) -> None:
        """Compile the block, once for all of its copies, and the loss; what joins them stays.

        Costs a fraction of compiling the whole, which would unroll the blocks.
        """
        for block in self.blocks:
            block.compile()
        self._loss = torch.compile(_loss_of)

    def _draw_weights(self) -> None:
        """Draw from normal distributions; under muP as Table 3 of arXiv 2203.03466 says."""
        shrink = self.config.mup_shrink
        residual = 1 / math.sqrt(2 * self.config.n_layer)
        for name, weight in self.named_parameters():
            if weight.ndim != 2:
                continue
            std = INIT_STD * (residual if "c_proj" in name else 1.0)
            if "lm_head" in name:
                std *= shrink
            elif "embed_tokens" not in name:
                std *= math.sqrt(shrink)
            nn.init.normal_(weight, std=std)

    @property
    def parameter_count(self) -> int:
        """How many numbers it learns."""
        return parameter_count(self.config)

    def flops_per_token(self, context: int) -> int:
        """Return the FLOPs of training on one token; see :func:`trainer.model.flops_per_token`."""
        return flops_per_token(self.config, context)

    def forward(
        self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the logits (B, T, V), or with targets the mean loss in nats per token, float32."""
        x_BTD = self.embed_tokens(tokens_BT)
        repeats = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            x_BTD = _checkpointed(block, x_BTD) if repeats else block(x_BTD)
        x_BTD = self.ln_f(x_BTD)
        if self._logit_scale != 1.0:
            x_BTD = x_BTD * self._logit_scale
        if targets_BT is not None:
            return self._loss(x_BTD, self.lm_head.weight, targets_BT)
        logits_BTV: torch.Tensor = self.lm_head(x_BTD)
        return logits_BTV


def _loss_of(x_BTD: torch.Tensor, head_VD: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of the head's logits."""
    rows = missing_rows(head_VD)
    logits_BTV = functional.linear(x_BTD, _with_rows(head_VD, rows) if rows else head_VD)
    logits_BTV = logits_BTV[..., : len(head_VD)].float()
    return functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def _checkpointed(block: nn.Module, x_BTD: torch.Tensor) -> torch.Tensor:
    # Nothing in a block is random, so that no generator has to be put back.
    y_BTD: torch.Tensor = checkpoint(
        block,
        x_BTD,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=recompute.contexts,
    )
    return y_BTD
