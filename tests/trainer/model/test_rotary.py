"""Rotary positions beside the formulas, written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rundir import UserError
from trainer import GPTConfig
from trainer.fields import from_mapping
from trainer.model import GPT, Rotary


def llama(x: np.ndarray, theta: float) -> np.ndarray:
    """Turn the components i and i + K/2 of x (T, K) as one complex number."""
    time, width = x.shape
    half = width // 2
    z = x[:, :half] + 1j * x[:, half:]
    for i in range(half):
        z[:, i] *= np.exp(1j * np.arange(time) * theta ** (-2 * i / width))
    return np.concatenate((z.real, z.imag), axis=1)


def gptopt(x: np.ndarray, theta: float) -> np.ndarray:
    """Neighbours pair, and component j has the frequency number j mod K/2."""
    time, width = x.shape
    y = np.empty_like(x)
    for t in range(time):
        angle = [t / theta ** (2 * (j % (width // 2)) / width) for j in range(width)]
        for j in range(0, width, 2):
            even, odd = x[t, j], x[t, j + 1]
            y[t, j] = even * math.cos(angle[j]) - odd * math.sin(angle[j])
            y[t, j + 1] = odd * math.cos(angle[j + 1]) + even * math.sin(angle[j + 1])
    return y


@pytest.mark.parametrize(("kind", "formula"), [("llama", llama), ("gptopt", gptopt)])
@pytest.mark.parametrize(("width", "theta"), [(2, 100.0), (6, 10000.0), (8, 500.0)])
def test_each_kind_is_its_formula(kind, formula, width: int, theta: float) -> None:
    x = np.random.default_rng(0).standard_normal((40, width))
    turned = Rotary(width, 64, theta, kind)(torch.tensor(x).float()[None, :, None])
    np.testing.assert_allclose(turned[0, :, 0].numpy(), formula(x, theta), rtol=0, atol=2e-6)


def test_gptopts_is_no_rotation_and_ours_is() -> None:
    x = torch.randn(1, 32, 2, 8, generator=torch.Generator().manual_seed(0))
    norms = {kind: Rotary(8, 32, 10000.0, kind)(x).norm(dim=-1) for kind in ("llama", "gptopt")}
    torch.testing.assert_close(norms["llama"], x.norm(dim=-1))
    assert (norms["gptopt"] - x.norm(dim=-1)).abs().max() > 0.1


def test_a_model_differs_by_the_kind_only_after_its_first_position() -> None:
    tokens = torch.arange(8)[None]
    logits = {}
    for kind in ("llama", "gptopt"):
        torch.manual_seed(0)
        shape = from_mapping(
            GPTConfig, {"n_embd": 24, "n_layer": 2, "n_head": 3, "rope": kind}, "model.config"
        )
        logits[kind] = GPT(shape, context=8)(tokens)
    assert torch.equal(logits["llama"][:, 0], logits["gptopt"][:, 0])
    assert not torch.allclose(logits["llama"][:, 2:], logits["gptopt"][:, 2:], atol=1e-5)


def test_another_kind_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        from_mapping(GPTConfig, {"rope": "lama"}, "model.config")
    assert str(caught.value) == "model.config.rope = 'lama'; must be one of llama, gptopt"
