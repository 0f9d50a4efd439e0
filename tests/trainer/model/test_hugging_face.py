"""Causal language models of transformers' as networks of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import trainer
from rundir import Run, UserError
from trainer.config import HuggingFaceConfig, TrainConfig
from trainer.model import build_model
from trainer.optim import build_optimizer
from trainer.optim.build import _BUILDERS
from trainer.optim.groups import split_parameters
from trainer.optim.params import REGISTRY, optimizer_params

pytest.importorskip("transformers", reason="needs the extra [hf]")

DENSE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
}
EXPERTS = DENSE | {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
}
TOKENS = torch.randint(50, (2, 2, 8), generator=torch.Generator().manual_seed(1))


FAMILIES = {_BUILDERS[kind]: name for name, kind in sorted(REGISTRY.items())}.values()


def build(architecture: str = "qwen2_moe", *, separate: bool = True, **more: Any) -> Any:
    torch.manual_seed(0)
    overrides = (EXPERTS if architecture == "qwen2_moe" else DENSE) | more
    return build_model(HuggingFaceConfig(architecture, 50, overrides, separate), context=8)


@pytest.fixture
def small(tiny: dict[str, Any]) -> dict[str, Any]:
    overrides = dict(EXPERTS)
    config = {"architecture": "qwen2_moe", "vocab_size": 256, "overrides": overrides}
    tiny["model"] = {"name": "qwen2moe", "config": config}
    return tiny


def losses(path: Path, stream: str) -> list[float]:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [record["loss"] for record in records if record["stream"] == stream]


def test_it_trains_and_resumes_to_the_bit(small, tmp_path: Path, stopping_run) -> None:
    from rundir import Preempted

    small["model"]["config"]["overrides"]["attention_dropout"] = 0.1
    with Run(tmp_path / "whole", threads=1) as run:
        trainer.run(small, run)
    whole = losses(tmp_path / "whole", "train")
    assert whole[-1] < whole[0] - 0.3
    with pytest.raises(Preempted), stopping_run(tmp_path / "parts", stop_after=5) as run:
        trainer.run(small, run)
    with Run(tmp_path / "parts", threads=1) as run:
        trainer.run(small, run)
    assert losses(tmp_path / "parts", "train") == whole
    assert losses(tmp_path / "parts", "val") == losses(tmp_path / "whole", "val")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_optimizer_steps_on_experts(name: str) -> None:
    model = build(num_hidden_layers=1)
    before = [weight.detach().clone() for weight in model.parameters()]
    optimizer = build_optimizer(model, optimizer_params({"name": name, "lr": 0.01}, ""))
    for _ in range(2):
        loss = model(*TOKENS)
        loss.backward()
        optimizer.step(lambda loss=loss: loss.detach())
        optimizer.zero_grad()
    for was, weight in zip(before, model.parameters(), strict=True):
        assert weight.isfinite().all()
        assert not torch.equal(was, weight)


def test_separate_experts_are_matrices_and_the_same_model() -> None:
    apart, stacked = build(), build(separate=False)
    assert torch.equal(apart(*TOKENS), stacked(*TOKENS))
    matrices = split_parameters(apart).matrices
    experts = [weight for name, weight in matrices.items() if ".experts." in name]
    assert sorted(tuple(w.shape) for w in experts) == sorted(2 * 4 * [(24, 16), (16, 12)])
    rest = split_parameters(stacked).rest
    assert [tuple(w.shape) for n, w in rest.items() if ".experts." in n] == 2 * [
        (4, 24, 16),
        (4, 16, 12),
    ]
    assert apart.parameter_count == stacked.parameter_count
    assert apart.active_parameter_count == stacked.active_parameter_count


def test_separate_experts_are_multiplied_in_the_type_of_autocast() -> None:
    """Most of the model's products: in fp32 on a GPU they would take most of a step."""
    network, odd = build(moe_intermediate_size=8), build(moe_intermediate_size=12)
    layers, others = (
        [m for name, m in each.named_modules() if name.endswith("experts")]
        for each in (network, odd)
    )
    assert len(layers) == 2
    for layer in layers:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            stacks = layer.gate_up_proj, layer.down_proj
        for stack in stacks:
            assert stack.dtype == torch.bfloat16
            stack.float().sum().backward()
        assert layer.gate_up_proj.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert others[0].down_proj.dtype == torch.float32  # the kernel would refuse its rows
    experts = [weight for name, weight in network.named_parameters() if ".experts." in name]
    assert len(experts) == 16
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in experts)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [("gpt_neox", ("embed_in", "embed_out")), ("gpt2", ("wte", "wpe", "lm_head"))],
)
def test_no_table_of_tokens_or_positions_is_a_matrix(architecture: str, words) -> None:
    overrides = {k: v for k, v in DENSE.items() if k != "num_key_value_heads"}
    if architecture == "gpt2":
        overrides.pop("intermediate_size")
    model = build_model(HuggingFaceConfig(architecture, 50, overrides), context=8)
    split = split_parameters(model)
    assert not [name for name in split.matrices if any(word in name for word in words)]
    assert len(split.matrices) == 2 * 4


def test_flops_are_what_torch_counts_for_the_experts_that_a_token_meets() -> None:
    model = build()
    model.network.set_experts_implementation("eager")
    model.network.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(*TOKENS).backward()
    # The spelled-out attention also multiplies the masked half: a mean length of T, not T / 2.
    assert counter.get_total_flops() == TOKENS[0].numel() * model.flops_per_token(2 * 8)


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_a_dense_model_are_what_torch_counts(tied: bool) -> None:
    model = build("llama", tie_word_embeddings=tied)
    model.network.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(*TOKENS).backward()
    assert counter.get_total_flops() == TOKENS[0].numel() * model.flops_per_token(2 * 8)


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for again in (False, True):
        model = build()
        model.activation_checkpointing = again
        assert model.activation_checkpointing is again
        model(*TOKENS).backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for plain, repeated in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, repeated, rtol=1e-6, atol=1e-9)


def test_the_balance_of_experts_is_part_of_the_training_loss_alone() -> None:
    plain = build()
    balanced = build(output_router_logits=True, router_aux_loss_coef=0.5)
    assert balanced(*TOKENS) > plain(*TOKENS) + 0.5
    assert torch.equal(balanced.eval()(*TOKENS), plain.eval()(*TOKENS))


BAD = [
    (
        {"architecture": "qwen2moe"},
        "model.config.architecture = 'qwen2moe'; must be the model_type of one of transformers' ",
        " causal language models; did you mean qwen2_moe?",
    ),
    (
        {"overrides": {"num_expert": 4}},
        "model.config.overrides.num_expert = 4; must be a key of qwen2_moe's configuration",
        "; did you mean num_experts?",
    ),
    (
        {"overrides": {"num_experts": "many"}},
        "model.config.overrides.num_experts = 'many'; must be a whole number",
        "",
    ),
    (
        {"overrides": {"vocab_size": 300}},
        "model.config.overrides.vocab_size = 300; must be set as model.config.vocab_size",
        "",
    ),
    ({"vocab_size": 100}, "model.config.vocab_size = 100; must be at least 256", "tokenizer bytes"),
    (
        {"overrides": {"max_position_embeddings": 8}},
        "training.training_params.context_length = 16; must be at most 8, the positions of ",
        "qwen2_moe",
    ),
    ({"archtecture": "llama"}, "unknown key archtecture in model.config", "architecture?"),
]


@pytest.mark.parametrize(("change", "begins", "ends"), BAD)
def test_a_mistake_is_one_line(small, change: dict[str, Any], begins: str, ends: str) -> None:
    small["model"]["config"] |= change
    with pytest.raises(UserError) as caught:
        TrainConfig.from_mapping(small)
    assert str(caught.value).startswith(begins)
    assert str(caught.value).endswith(ends)
    assert "\n" not in str(caught.value)


def test_what_transformers_refuses_is_one_line_too() -> None:
    with pytest.raises(UserError) as caught:
        build(hidden_size=-16)
    assert str(caught.value).startswith(
        "model.config.overrides: transformers can't build qwen2_moe of them: "
    )
    assert "\n" not in str(caught.value)


def test_mup_is_refused(small) -> None:
    small["optimizer"]["optimizer_params"]["mup_base_n_embd"] = 16
    with pytest.raises(UserError, match="null: muP knows only this project's own GPT"):
        TrainConfig.from_mapping(small)


def test_without_transformers_it_says_what_to_install(small, monkeypatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        TrainConfig.from_mapping(small)
    assert str(caught.value) == (
        "model.config.architecture = 'qwen2_moe'; must be left out: transformers is not installed; "
        "pip install -e '.[hf]' in optsweep's directory brings it"
    )


CHECK = """
import json, sys, trainer
from rundir import UserError
try:
    trainer.check(json.load(sys.stdin))
except UserError as error:
    print(error)
assert not {"torch", "numpy", "transformers"} & set(sys.modules)
"""


def test_the_check_before_submission_loads_neither_torch_nor_transformers(small) -> None:
    small["model"]["config"]["overrides"]["hiden_size"] = 32
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        input=json.dumps(small),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    assert done.stdout.endswith("configuration; did you mean hidden_size?\n")
