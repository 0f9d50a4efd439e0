# ruff: noqa: N803, N815 - tensor names end in their shape
"""Rotary positions (arXiv 2104.09864): as Llama has them, and as GPT-opt has them.

Shapes: B batch, T time, H heads, K head width.
"""

from __future__ import annotations

import torch
from torch import nn

from trainer.config.model import Rope


class Rotary(nn.Module):
    """Turns queries and keys by angles that grow with the position.

    ``llama`` turns the pair of components i and i + K/2 by the angle position * theta^(-2i/K).

    ``gptopt`` pairs the neighbours 2i and 2i + 1, as GPT-opt does, but takes for component j the
    angle of frequency j mod K/2: the two of a pair have different ones. That is no rotation, and
    products of queries and keys depend on more than their distance; old results need it.
    """

    cos_TK: torch.Tensor
    sin_TK: torch.Tensor

    def __init__(self, head_width: int, context: int, theta: float, kind: Rope = "llama") -> None:
        """Take positions up to ``context`` and wavelengths from 2 pi to about 2 pi ``theta``."""
        super().__init__()
        self.pairs_neighbours = kind == "gptopt"
        frequency = theta ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
        angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency)
        cosine, sine = angle.cos().float(), angle.sin().float()
        # The first of a pair loses what the second one gains.
        signed = torch.cat((-sine, sine), -1)
        if self.pairs_neighbours:
            signed = torch.cat((sine, sine), -1)
            signed[:, ::2].neg_()
        self.register_buffer("cos_TK", torch.cat((cosine, cosine), -1), persistent=False)
        self.register_buffer("sin_TK", signed, persistent=False)

    def forward(self, x_BTHK: torch.Tensor) -> torch.Tensor:
        """Turn each pair of components by its angle at its position; in float32 inside."""
        time = x_BTHK.shape[1]
        cos, sin = self.cos_TK[:time, None], self.sin_TK[:time, None]
        return (x_BTHK * cos + self._partners(x_BTHK) * sin).to(x_BTHK.dtype)

    def _partners(self, x_BTHK: torch.Tensor) -> torch.Tensor:
        """Return in each place the other component of its pair."""
        if self.pairs_neighbours:
            return x_BTHK.view(*x_BTHK.shape[:-1], -1, 2).flip(-1).flatten(-2)
        first, second = x_BTHK.chunk(2, dim=-1)
        return torch.cat((second, first), dim=-1)
