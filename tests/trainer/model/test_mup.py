"""muP's coordinate check: how activations grow with the width after some steps of training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rundir import UserError
from trainer import GPTConfig, TrainConfig
from trainer.model import GPT
from trainer.optim import build_optimizer
from trainer.optim.division import group_record
from trainer.optim.params import optimizer_params

BASE, WIDTHS = 32, (32, 128)
TOKENS = torch.randint(64, (2, 4, 16), generator=torch.Generator().manual_seed(3))
LR = {"adamw": 0.01, "sgd": 0.5, "muon": 0.02}


def shape(width: int, *, mup: bool, **values: Any) -> GPTConfig:
    base = {"enable_mup_with_base_n_embd": BASE} if mup else {}
    return GPTConfig(n_embd=width, n_layer=2, n_head=2, vocab_size=64, **base, **values)


def growth(name: str, *, mup: bool, tied: bool) -> dict[str, float]:
    """Return by what power of the width the change of each activation grows.

    The change is that since the first step: initial activations say little of what training does.
    """
    changes = {width: moved(name, width, mup=mup, tied=tied) for width in WIDTHS}
    narrow, wide = changes[WIDTHS[0]], changes[WIDTHS[-1]]
    return {kind: math.log(wide[kind] / narrow[kind], WIDTHS[-1] / WIDTHS[0]) for kind in wide}


def moved(name: str, width: int, *, mup: bool, tied: bool) -> dict[str, float]:
    torch.manual_seed(0)
    model = GPT(shape(width, mup=mup, tie_embeddings=tied), context=16)
    optimizer = build_optimizer(model, optimizer_params({"name": name, "lr": LR[name]}, ""))
    before = activations(model)
    for _ in range(4):
        loss = model(*TOKENS)
        loss.backward()
        optimizer.step(lambda loss=loss: loss)
        optimizer.zero_grad()
    after = activations(model)
    return {kind: (after[kind] - before[kind]).square().mean().sqrt().item() for kind in after}


@torch.no_grad()
def activations(model: GPT) -> dict[str, torch.Tensor]:
    seen = {}
    attention = model.blocks[-1].attn
    hooks = [
        model.blocks[-1].register_forward_hook(lambda *a: seen.update(residual=a[2])),
        attention.c_attn.register_forward_hook(lambda *a: seen.update(qkv=a[2])),
    ]
    seen["logits"] = model(TOKENS[0])
    for hook in hooks:
        hook.remove()
    q, k, _ = seen.pop("qkv").unflatten(-1, (3, 2, -1)).transpose(1, 3).unbind(2)
    scale = attention.scale or q.shape[-1] ** -0.5
    seen["scores"] = q @ k.mT * scale
    return seen


@pytest.mark.parametrize(
    ("name", "tied"), [("adamw", True), ("adamw", False), ("sgd", True), ("muon", False)]
)
def test_what_training_does_to_activations_grows_with_the_width_only_without_mup(
    name: str, tied: bool
) -> None:
    plain, followed = (growth(name, mup=mup, tied=tied) for mup in (False, True))
    assert min(plain["logits"], plain["scores"]) > 0.6
    assert plain["residual"] > 0.1
    assert max(followed.values()) < 0.1
    assert min(followed["logits"], followed["residual"]) > -0.3  # nor does it stop learning


def test_at_the_base_width_nothing_changes() -> None:
    models = []
    for mup in (False, True):
        torch.manual_seed(0)
        models.append(GPT(shape(BASE, mup=mup), context=16))
    torch.testing.assert_close(models[0](*TOKENS), models[1](*TOKENS), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("tied", "embedding", "head"), [(True, 1.0, 1.0), (False, 1.0, 0.25)])
def test_initial_weights_follow_the_width_as_table_3_says(
    tied: bool, embedding: float, head: float
) -> None:
    torch.manual_seed(0)
    model = GPT(shape(4 * BASE, mup=True, tie_embeddings=tied), context=16)
    stds = {name: weight.std().item() / 0.02 for name, weight in model.named_parameters()}
    assert stds["embed_tokens.weight"] == pytest.approx(embedding, rel=0.03)
    assert model.lm_head.weight.std().item() / 0.02 == pytest.approx(head, rel=0.03)
    assert stds["blocks.0.mlp.c_fc.weight"] == pytest.approx(0.5, rel=0.03)
    assert stds["blocks.0.mlp.c_proj.weight"] == pytest.approx(0.25, rel=0.03)  # and / sqrt(4)


def test_learning_rates_follow_the_models_base_width() -> None:
    model = GPT(shape(4 * BASE, mup=True), context=16)
    params = optimizer_params({"name": "adamw", "lr": 0.01, "weight_decay": 0.1}, "")
    record = group_record(build_optimizer(model, params), model)
    assert record["blocks.0.mlp.c_fc.weight"][1:] == pytest.approx((0.0025, 0.4))
    assert record["embed_tokens.weight"][1:] == pytest.approx((0.01, 0.1))


@pytest.mark.parametrize(
    ("width", "heads", "base_heads", "scale"),
    [(128, 2, None, 4 / 64), (128, 8, 2, 4 / 16), (32, 2, None, 4 / 16)],
)
def test_scores_are_scaled_by_the_head_width(
    width: int, heads: int, base_heads: int | None, scale: float
) -> None:
    config = GPTConfig(
        n_embd=width, n_head=heads, enable_mup_with_base_n_embd=BASE, mup_base_n_head=base_heads
    )
    assert config.attention_scale == pytest.approx(scale)
    assert GPTConfig(n_embd=width, n_head=heads).attention_scale is None


@pytest.mark.parametrize(
    ("model", "optimizer", "message"),
    [
        (
            {"enable_mup_with_base_n_embd": 0},
            {},
            "model.config.enable_mup_with_base_n_embd = 0; must be at least 1, or null",
        ),
        (
            {"mup_base_n_head": 2},
            {},
            "model.config.mup_base_n_head = 2; must be null without enable_mup_with_base_n_embd",
        ),
        (
            {"enable_mup_with_base_n_embd": 8},
            {"name": "soap"},
            (
                "model.config.enable_mup_with_base_n_embd = 8; must be null: for soap no rule of "
                "muP is known"
            ),
        ),
        (
            {"enable_mup_with_base_n_embd": 8},
            {"mup_base_n_embd": 16},
            (
                "model.config.enable_mup_with_base_n_embd = 8; must be 16, as "
                "optimizer.optimizer_params.mup_base_n_embd, or null"
            ),
        ),
    ],
)
def test_what_cannot_be_is_refused(tiny, model, optimizer, message: str) -> None:
    tiny["model"]["config"] |= model
    tiny["optimizer"]["optimizer_params"] |= optimizer
    with pytest.raises(UserError) as caught:
        TrainConfig.from_mapping(tiny)
    assert str(caught.value) == message
