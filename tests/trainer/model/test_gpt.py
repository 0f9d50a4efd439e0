from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer import GPTConfig
from trainer.model import GPT, Rotary, flops_per_token, parameter_count

SHAPE = GPTConfig(n_embd=24, n_layer=2, n_head=3, vocab_size=50)


def build(config: GPTConfig, context: int = 16) -> GPT:
    torch.manual_seed(0)
    return GPT(config, context)


def tokens(batch: int, time: int) -> torch.Tensor:
    return torch.randint(50, (batch, time), generator=torch.Generator().manual_seed(1))


def test_a_position_sees_nothing_after_itself() -> None:
    model, original = build(SHAPE), tokens(2, 16)
    changed = original.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 50
    before, after = model(original), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("shift", [1, 5, 40])
def test_rotary_products_depend_only_on_the_distance(shift: int) -> None:
    rotary = Rotary(head_width=8, context=64, theta=10000.0)
    torch.manual_seed(0)
    q, k = torch.randn(8), torch.randn(8)
    turned_q = rotary(q.expand(1, 64, 1, 8))[0, :, 0]
    turned_k = rotary(k.expand(1, 64, 1, 8))[0, :, 0]
    here, there = turned_q[7] @ turned_k[3], turned_q[7 + shift] @ turned_k[3 + shift]
    torch.testing.assert_close(here, there)
    assert not torch.isclose(here, turned_q[7] @ turned_k[3 + shift])


def test_rotary_turns_each_pair_by_its_own_frequency() -> None:
    rotary = Rotary(head_width=4, context=8, theta=100.0)
    x = torch.tensor([1.0, 0.0, 0.0, 2.0]).expand(1, 8, 1, 4)
    slow, fast = 5 * 100.0 ** (-2 / 4), 5.0
    expected = [math.cos(fast), -2 * math.sin(slow), math.sin(fast), 2 * math.cos(slow)]
    torch.testing.assert_close(rotary(x)[0, 5, 0], torch.tensor(expected))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("multiple", [1, 32])
def test_the_parameter_count_is_the_formula(tied: bool, multiple: int) -> None:
    config = GPTConfig(
        n_embd=24, n_layer=2, n_head=3, vocab_size=50, tie_embeddings=tied, ffn_multiple_of=multiple
    )
    assert sum(p.numel() for p in build(config).parameters()) == parameter_count(config)


def test_sizes_known_from_the_literature() -> None:
    sizes = {"small": (768, 12, 12), "medium": (1024, 24, 16), "large": (1280, 36, 20)}
    millions = {
        name: round(parameter_count(GPTConfig(d, layers, heads, 50257)) / 1e6)
        for name, (d, layers, heads) in sizes.items()
    }
    assert millions == {"small": 124, "medium": 353, "large": 772}


def test_the_flop_formula_is_what_torch_counts() -> None:
    config = GPTConfig(n_embd=24, n_layer=2, n_head=3, vocab_size=50, flash_attention=False)
    model, x = build(config), tokens(3, 16)
    with FlopCounterMode(display=False) as counter:
        model(x, x).backward()
    # The spelled-out attention also multiplies the masked half: a mean length of T, not T / 2.
    assert counter.get_total_flops() == 3 * 16 * flops_per_token(config, 2 * 16)


def test_fused_attention_equals_the_spelled_out_one() -> None:
    spelled_out = GPTConfig(n_embd=24, n_layer=2, n_head=3, vocab_size=50, flash_attention=False)
    x = tokens(2, 16)
    torch.testing.assert_close(build(SHAPE)(x), build(spelled_out)(x))


def test_an_untrained_model_knows_nothing() -> None:
    x = tokens(8, 16)
    assert build(SHAPE)(x, x.roll(-1)).item() == pytest.approx(math.log(50), abs=0.02)


def test_only_the_embedding_and_the_head_are_no_matrices() -> None:
    words = ("embeddings", "embed_tokens", "wte", "wpe", "lm_head")
    untied = GPTConfig(n_embd=24, n_layer=2, n_head=3, vocab_size=50, tie_embeddings=False)
    two_d = [name for name, p in build(untied).named_parameters() if p.ndim == 2]
    assert [name for name in two_d if any(word in name for word in words)] == [
        "embed_tokens.weight",
        "lm_head.weight",
    ]
    assert len(two_d) == 2 + 2 * 5


@pytest.mark.parametrize("tied", [True, False])
def test_outputs_that_are_added_for_the_kernels_change_nothing(monkeypatch, tied: bool) -> None:
    """As on a GPU, where rows are to begin at multiples of 16 bytes."""
    config = GPTConfig(n_embd=24, n_layer=2, n_head=3, vocab_size=50, tie_embeddings=tied)
    x, results = tokens(2, 16), []
    for missing in (lambda _: 0, lambda weight: -weight.shape[0] % 64):
        monkeypatch.setattr("trainer.model.gpt.missing_rows", missing)
        model = build(config)
        loss = model(x, x.roll(-1))
        loss.backward()
        results.append((loss, *(weight.grad for weight in model.parameters())))
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-6, atol=1e-7)


def test_nothing_is_added_where_somebody_looks_at_a_layers_inputs(monkeypatch) -> None:
    monkeypatch.setattr("trainer.model.gpt.missing_rows", lambda weight: -weight.shape[0] % 64)
    model, seen = build(SHAPE), []
    for block in model.blocks:
        block.mlp.c_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model(tokens(2, 16), tokens(2, 16))
    assert seen == 2 * [(2, 16, SHAPE.ffn_width)]
