# ruff: noqa: N803, N806 - tensor names end in their shape
"""Text from a trained model, token by token.

Shapes: B batch, T time, D model width, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from rundir.errors import require
from trainer.model import GPT, HuggingFaceModel
from trainer.model.gpt import Attention


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen."""

    temperature: float = 0.8
    """What logits are divided by; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw from this many of the likeliest tokens only."""
    top_p: float | None = None
    """Draw from the fewest likeliest tokens whose probabilities add up to this."""

    def __post_init__(self) -> None:
        finite = 0 <= self.temperature < float("inf")
        require(finite, "temperature", self.temperature, "a number of at least 0")
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "at least 1")
        within = self.top_p is None or 0 < self.top_p <= 1
        require(within, "top_p", self.top_p, "above 0 and at most 1")

    def next(self, logits_V: torch.Tensor, generator: torch.Generator) -> int:
        """Return a token; ``generator`` is on the device of the logits."""
        if self.temperature == 0:
            return int(logits_V.argmax())
        logits_V = logits_V.double() / self.temperature
        if self.top_k is not None and self.top_k < len(logits_V):
            least = logits_V.topk(self.top_k).values[-1]
            logits_V = logits_V.masked_fill(logits_V < least, float("-inf"))
        probability_V = logits_V.softmax(-1)
        if self.top_p is not None:
            sorted_V, order_V = probability_V.sort(descending=True)
            is_beyond_V = sorted_V.cumsum(-1) - sorted_V >= self.top_p  # without itself
            probability_V[order_V[is_beyond_V]] = 0
        return int(probability_V.multinomial(1, generator=generator))


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Sequence[int],
    choice: Choice,
    *,
    context: int,
    vocabulary: int,
    seed: int,
    is_cached: bool = True,
) -> Iterator[int]:
    """Yield tokens that follow ``prompt``, without end; the same for the same seed.

    A token is predicted from the ``context`` before it. When those are full, the older half is
    dropped and the rest read once more: that costs less than a step of training per context / 2
    tokens, where moving on by one would cost as much for every token.

    Args:
        model: in evaluation mode; its attention layers are replaced while this runs.
        prompt: at least one token; of longer ones the last ``context`` count.
        choice: how to choose.
        context: the longest sequence that the model has seen, T.
        vocabulary: tokens that have a text; a model may have more.
        seed: of what is drawn.
        is_cached: whether keys and values are kept; only slower without.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    window = list(prompt[-context:])
    past: dict[str, Any] = {}  # of a network of transformers'
    with _keys_and_values_kept(model, context, wanted=is_cached) as layers:
        unread = window
        while True:
            tokens_BT = torch.tensor([unread if layers or past else window], device=device)
            if is_cached and isinstance(model, HuggingFaceModel):
                logits_BTV, past = model.read_on(tokens_BT, past)
            else:
                logits_BTV = model(tokens_BT)
            token = choice.next(logits_BTV[0, -1, :vocabulary].float(), generator)
            yield token
            window.append(token)
            unread = [token]
            if len(window) > context:
                window = unread = window[-max(1, context // 2) :]
                past = {}
                for layer in layers:
                    layer.forget()


@contextmanager
def _keys_and_values_kept(
    model: nn.Module, context: int, *, wanted: bool
) -> Iterator[list[_KeepingAttention]]:
    """Have a GPT's attention layers keep what they have read; yields them, none if it is no GPT."""
    if not wanted or not isinstance(model, GPT):
        yield []
        return
    blocks: list[Any] = list(model.blocks)
    before = [block.attn for block in blocks]
    layers = [_KeepingAttention(attention, context) for attention in before]
    try:
        for block, layer in zip(blocks, layers, strict=True):
            block.attn = layer
        yield layers
    finally:
        for block, attention in zip(blocks, before, strict=True):
            block.attn = attention


class _KeepingAttention(nn.Module):
    """An attention layer that reads a sequence once, in parts.

    The first part may be of any length; those that follow are single tokens.
    """

    def __init__(self, attention: Attention, context: int) -> None:
        super().__init__()
        self._whole, self._context = attention, context
        self._kept: torch.Tensor | None = None
        """Keys and values, (2, B, H, context, K)."""
        self._length = 0

    def forget(self) -> None:
        """Begin anew."""
        self._length = 0

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Mix each position with those before it, those of earlier parts too."""
        whole = self._whole
        batch, time, width = x_BTD.shape
        heads, head_width = whole.heads, whole.head_width
        qkv = whole.c_attn(x_BTD).view(batch, time, 3 * heads, head_width)
        qk, v_BTHK = qkv.split((2 * heads, heads), dim=2)
        q_BHTK, k_BHTK = self._rotated(qk).transpose(1, 2).chunk(2, dim=1)
        if self._kept is None:
            room = (2, batch, heads, self._context, head_width)
            self._kept = torch.empty(room, dtype=qkv.dtype, device=qkv.device)
        first, end = self._length, self._length + time
        self._kept[0, :, :, first:end] = k_BHTK
        self._kept[1, :, :, first:end] = v_BTHK.transpose(1, 2)
        self._length = end
        keys, values = self._kept[:, :, :, :end]
        y_BHTK = functional.scaled_dot_product_attention(
            q_BHTK, keys, values, is_causal=first == 0, scale=getattr(whole, "scale", None)
        )
        projected: torch.Tensor = whole.c_proj(y_BHTK.transpose(1, 2).reshape(batch, time, width))
        return projected

    def _rotated(self, x_BTHK: torch.Tensor) -> torch.Tensor:
        """Turn by the positions from ``_length`` on; the layer itself counts from 0."""
        rotary = copy.copy(self._whole.rotary)
        tables: dict[str, torch.Tensor | None] = {
            name: table[self._length :] for name, table in rotary.named_buffers()
        }
        rotary._buffers = tables  # noqa: SLF001 - of the copy alone
        turned: torch.Tensor = rotary(x_BTHK)
        return turned
