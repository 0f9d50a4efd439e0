"""Our GPT beside transformers' Llama of the same shape and weights: an independent oracle."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer import GPTConfig
from trainer.model import GPT

transformers = pytest.importorskip("transformers", reason="needs the extra [hf]")

SHAPES = {
    "tied": GPTConfig(n_embd=24, n_layer=2, n_head=3, vocab_size=50),
    "untied": GPTConfig(n_embd=24, n_layer=2, n_head=3, vocab_size=50, tie_embeddings=False),
    "one block, one head, another theta": GPTConfig(
        n_embd=16, n_layer=1, n_head=1, vocab_size=31, rope_theta=200.0, norm_eps=1e-5
    ),
    "aligned and spelled out": GPTConfig(
        n_embd=32,
        n_layer=3,
        n_head=4,
        vocab_size=64,
        ffn_multiple_of=32,
        flash_attention=False,
        tie_embeddings=False,
    ),
}
TIME = 17


def twin_of(model: GPT) -> nn.Module:
    """Return transformers' Llama with the weights of ours, built from its config."""
    shape = model.config
    twin = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.n_embd,
            intermediate_size=shape.ffn_width,
            num_hidden_layers=shape.n_layer,
            num_attention_heads=shape.n_head,
            max_position_embeddings=TIME,
            rms_norm_eps=shape.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
            tie_word_embeddings=shape.tie_embeddings,
            attention_bias=False,
            mlp_bias=False,
        )
    )
    left = twin.load_state_dict(theirs(dict(model.named_parameters())), strict=False)
    assert not left.unexpected_keys
    assert left.missing_keys == (["lm_head.weight"] if shape.tie_embeddings else [])
    return twin


def theirs(ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Map tensors by our names of weights to theirs; the fused projections part."""
    names = {
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        "attn.c_proj": "self_attn.o_proj",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_gate": "mlp.gate_proj",
        "mlp.c_proj": "mlp.down_proj",
    }
    top = {"embed_tokens": "model.embed_tokens", "ln_f": "model.norm", "lm_head": "lm_head"}
    mapped = {}
    for name, tensor in ours.items():
        stem = name.removesuffix(".weight")
        if stem in top:
            mapped[f"{top[stem]}.weight"] = tensor
            continue
        _, number, part = stem.split(".", 2)
        block = f"model.layers.{number}"
        if part == "attn.c_attn":
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                mapped[f"{block}.self_attn.{letter}_proj.weight"] = third
        else:
            mapped[f"{block}.{names[part]}.weight"] = tensor
    return mapped


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_logits_loss_and_gradients_are_transformers_llamas(shape: GPTConfig) -> None:
    torch.manual_seed(0)
    model = GPT(shape, context=32)
    with torch.no_grad():
        for weight in model.parameters():  # larger than at the start, and the norms' too
            weight.mul_(3.0).add_(torch.randn_like(weight), alpha=0.05)
    twin = twin_of(model)
    tokens, targets = torch.randint(shape.vocab_size, (2, 3, TIME))
    logits = twin(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(model(tokens), logits, rtol=1e-5, atol=1e-5)
    loss = model(tokens, targets)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    expected.backward()
    ours = theirs({name: weight.grad for name, weight in model.named_parameters()})
    gradients = {name: weight.grad for name, weight in twin.named_parameters()}
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        close = {"rtol": 1e-5, "atol": 1e-5 * gradient.abs().max().item()}
        torch.testing.assert_close(ours[name], gradient, **close, msg=lambda m, n=name: f"{n}: {m}")


def test_the_oracle_tells_gptopts_rotary_positions_from_llamas() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_embd=24, n_layer=2, n_head=3, vocab_size=50, rope="gptopt"), TIME)
    tokens = torch.randint(50, (3, TIME))
    difference = (model(tokens) - twin_of(model)(input_ids=tokens, use_cache=False).logits).abs()
    assert difference.max() > 1e-4
