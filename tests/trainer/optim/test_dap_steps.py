"""DAP beside its oracle on random models: shared inputs, parts of them, pauses, resumed states."""

from __future__ import annotations

import copy
import dataclasses
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from trainer.config import GPTConfig
from trainer.model import GPT
from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.dap import Dap
from trainer.optim.moments import InputMoments

BASE: dict[str, Any] = {"name": "dap-ns-nadam", "lr": 0.02, "weight_decay": 0.1}
LAYERS = ("query", "key", "value", "gate", "up", "down")


class Gated(nn.Module):
    """Three layers of one input and two of another, and what follows them."""

    def __init__(self, width: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, outputs, bias=False)

    def forward(
        self, x: torch.Tensor, absent: frozenset[str], parted: frozenset[str]
    ) -> torch.Tensor:
        """Leave layers out, or have them see a copy of what others see."""

        def seen(name: str, x: torch.Tensor) -> torch.Tensor:
            if name in absent:
                return x.new_full((), 0.5)
            layer: nn.Linear = getattr(self, name)
            out: torch.Tensor = layer(x.clone() if name in parted else x)
            return out

        h = self.norm(x)
        mixed = torch.tanh(h + seen("query", h) * seen("key", h) + seen("value", h))
        inner = seen("gate", mixed) * torch.tanh(seen("up", mixed))
        return inner if "down" in absent else seen("down", inner)


class Beside:
    """A model, its optimizer, and what the oracle makes of the same gradients and inputs."""

    def __init__(self, model: Gated, params: Any, oracle: ModuleType) -> None:
        self.params = params
        self.reference = oracle.Dap(params)
        self.weights = {
            name: p.detach().double().numpy().copy() for name, p in model.named_parameters()
        }
        self.seen: dict[str, list[Any]] = {}
        self.rate_in_tensor = False
        self.follow(model)

    def follow(self, model: Gated) -> None:
        self.model = model
        self.optimizer: Any = build_optimizer(model, self.params)
        for name in LAYERS:
            getattr(model, name).register_forward_hook(
                lambda _module, inputs, _output, key=f"{name}.weight": self.seen.setdefault(
                    key, []
                ).append(inputs[0].detach().double().reshape(-1, inputs[0].shape[-1]).numpy())
            )

    def step(self, draw: random.Random, lr: float) -> None:
        self.seen.clear()
        self.optimizer.zero_grad()
        out = draw.choice([(), (), ("value",), ("gate",), ("up", "key"), ("down", "query")])
        generator = torch.Generator().manual_seed(draw.randrange(1000))
        for _ in range(draw.randint(1, 4)):
            parted = frozenset(draw.choice([(), (), ("key",), ("gate",)]))
            shape = (draw.randint(2, 5), 4, self.model.query.in_features)
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.model(
                x.to(self.model.key.weight.dtype), frozenset(out), parted
            ).square().mean().backward()
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(lr, dtype=torch.float64) if self.rate_in_tensor else lr
        gradients = {
            name: p.grad.double().numpy().copy()
            for name, p in self.model.named_parameters()
            if p.grad is not None
        }
        self.optimizer.step()
        self.reference.step(self.weights, gradients, self._taken(), lr)

    def _taken(self) -> dict[str, list[Any]]:
        part = self.params.xtx_subsample or 1.0
        if self.params.mb_subsampling:
            return {key: found[:: round(1 / part)] for key, found in self.seen.items()}
        return {
            key: [rows[: max(1, int(part * len(rows)))] for rows in found]
            for key, found in self.seen.items()
        }

    def compare(self, rtol: float, atol: float) -> None:
        for name, parameter in self.model.named_parameters():
            expected = torch.from_numpy(self.weights[name])
            ours = parameter.detach().double()
            torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol, msg=name)


def drawn(draw: random.Random) -> dict[str, Any]:
    """Values of a configuration, everything that a step can be told."""
    return {
        **BASE,
        "accelerated": draw.choice([1e-3, 0.05]),
        "ema_beta": draw.choice([0.0, 0.6, 0.9]),
        "damping": draw.choice([0.0, 0.1]),
        "dap_beta1": draw.choice([0.0, 0.9]),
        "dap_beta2": draw.choice([0.0, 0.99]),
        "momentum": draw.choice([0.0, 0.7]),
        "nesterov": draw.choice([True, False]),
        "xtx_subsample": draw.choice([None, 0.5, 0.34]),
        "mb_subsampling": draw.choice([True, False]),
        "update_norm": draw.choice([False, False, True]),
    }


def model_of(draw: random.Random) -> Gated:
    torch.manual_seed(draw.randrange(1000))
    return Gated(draw.randint(2, 9), draw.randint(2, 12), draw.randint(1, 5)).double()


@pytest.mark.parametrize("seed", range(40))
def test_random_steps_follow_the_formulas_through_a_resumption(
    oracle: ModuleType, seed: int, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    model = model_of(draw)
    beside = Beside(model, optimizer_params(drawn(draw), ""), oracle)
    for step in range(3):
        beside.step(draw, 0.02 / (step + 1))
    state = {"model": model.state_dict(), "optimizer": beside.optimizer.state_dict()}
    torch.save(state, tmp_path / "saved")
    saved = torch.load(tmp_path / "saved", weights_only=True)
    resumed = copy.deepcopy(model)
    for layer in LAYERS:
        getattr(resumed, layer)._forward_pre_hooks.clear()
        getattr(resumed, layer)._forward_hooks.clear()
    beside.follow(resumed)
    resumed.load_state_dict(saved["model"])
    beside.optimizer.load_state_dict(saved["optimizer"])
    for step in range(3):
        beside.step(draw, 0.02 / (step + 1))
    beside.compare(rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("seed", range(12))
def test_counting_on_the_device_goes_on_where_the_host_counted(
    oracle: ModuleType, seed: int
) -> None:
    draw = random.Random(seed)
    beside = Beside(model_of(draw), optimizer_params(drawn(draw), ""), oracle)
    for step in range(5):
        beside.rate_in_tensor = step in {2, 3}  # the last step's rate is a number again
        beside.step(draw, 0.02 / (step + 1))
    beside.compare(rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("seed", range(6))
def test_random_steps_in_fp32_follow_the_formulas(oracle: ModuleType, seed: int) -> None:
    draw = random.Random(seed)
    # Divided by its own root, a direction that rounding decides would be as large as any.
    values = {**drawn(draw), "accelerated": 0.1, "dap_beta2": 0.0, "update_norm": False}
    beside = Beside(model_of(draw).float(), optimizer_params(values, ""), oracle)
    for _ in range(3):
        beside.step(draw, 0.01)
    beside.compare(rtol=1e-4, atol=1e-5)


def train(model: Gated, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(3, 4, model.query.in_features, generator=generator)
        optimizer.zero_grad()
        model(x, frozenset(), frozenset()).square().mean().backward()
        optimizer.step()


def moments_of(optimizer: torch.optim.Optimizer, model: Gated) -> list[torch.Tensor]:
    return [optimizer.state[getattr(model, name).weight]["second_moment"] for name in LAYERS]


def test_the_average_of_a_shared_input_is_kept_and_saved_once(tmp_path: Path) -> None:
    model = Gated(32, 48, 2)
    params = optimizer_params({**BASE, "ema_beta": 0.5}, "")
    optimizer = build_optimizer(model, params)
    train(model, optimizer, range(2))
    query, key, value, gate, up, down = moments_of(optimizer, model)
    assert query is key is value
    assert gate is up
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "saved")
    saved = torch.load(tmp_path / "saved", weights_only=True)
    resumed = build_optimizer(model, params)
    resumed.load_state_dict(saved["optimizer"])
    query, key, value, gate, up, down = moments_of(resumed, model)
    assert query is key is value
    assert gate is up
    assert len({id(each) for each in (query, gate, down)}) == 3


def test_a_checkpoint_with_an_average_for_every_weight_continues_to_the_bit() -> None:
    model = Gated(6, 9, 2)
    params = optimizer_params({**BASE, "ema_beta": 0.5}, "")
    optimizer = build_optimizer(model, params)
    train(model, optimizer, range(3))
    twin = copy.deepcopy(model)
    for layer in LAYERS:
        getattr(twin, layer)._forward_pre_hooks.clear()
    older = copy.deepcopy(optimizer.state_dict())
    for state in older["state"].values():
        if "second_moment" in state:
            state["second_moment"] = state["second_moment"].clone()
    resumed = build_optimizer(twin, params)
    resumed.load_state_dict(older)
    assert moments_of(resumed, twin)[3] is moments_of(resumed, twin)[4]
    train(model, optimizer, range(3, 6))
    train(twin, resumed, range(3, 6))
    for ours, expected in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_steps_that_an_older_checkpoint_counted_as_numbers_are_counted_on() -> None:
    model = Gated(6, 9, 2)
    params = optimizer_params(BASE, "")
    optimizer = build_optimizer(model, params)
    train(model, optimizer, range(2))
    twin = copy.deepcopy(model)
    for layer in LAYERS:
        getattr(twin, layer)._forward_pre_hooks.clear()
    older = copy.deepcopy(optimizer.state_dict())
    for state in older["state"].values():
        state["step"] = int(state["step"])
    resumed = build_optimizer(twin, params)
    resumed.load_state_dict(older)
    train(model, optimizer, range(2, 4))
    train(twin, resumed, range(2, 4))
    for ours, expected in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, expected)
        assert resumed.state[ours]["step"] == 4


def test_a_half_precision_models_average_is_resumed_in_full() -> None:
    model = Gated(6, 9, 2).to(torch.bfloat16)
    params = optimizer_params({**BASE, "ema_beta": 0.5}, "")
    optimizer: Any = build_optimizer(model, params)
    for name in LAYERS:
        layer = getattr(model, name)
        layer(torch.ones(4, layer.in_features, dtype=torch.bfloat16) / 3).sum().backward()
    optimizer.step()
    resumed = build_optimizer(model, params)
    resumed.load_state_dict(optimizer.state_dict())
    for ours, saved in zip(moments_of(resumed, model), moments_of(optimizer, model), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, saved)


def test_groups_have_learning_rates_and_weight_decays_of_their_own(oracle: ModuleType) -> None:
    draw = random.Random(7)
    model = model_of(draw)
    params: Any = optimizer_params(BASE, "")
    own = [
        (["query.weight", "up.weight"], {"preconditioned": True, "lr": 0.3, "weight_decay": 0.0}),
        (["key.weight", "value.weight", "gate.weight"], {"preconditioned": True}),
        (["down.weight"], {"preconditioned": True, "weight_decay": 0.7}),
        (["query.bias"], {"lr": 0.004}),
        (["norm.weight", "norm.bias"], {}),
    ]
    named = dict(model.named_parameters())
    moments = InputMoments()
    for name in LAYERS:
        moments.watch(getattr(model, name))
    groups = [{"params": [named[name] for name in names], **kw} for names, kw in own]
    optimizer = Dap(groups, moments, params)
    assert optimizer.param_groups[1]["lr"] == params.lr
    references = [
        oracle.Dap(
            dataclasses.replace(params, weight_decay=kw.get("weight_decay", params.weight_decay))
        )
        for _, kw in own
    ]
    weights = {name: p.detach().numpy().copy() for name, p in named.items()}
    seen: dict[str, list[Any]] = {}
    for name in LAYERS:
        getattr(model, name).register_forward_hook(
            lambda _module, inputs, _output, key=f"{name}.weight": seen.update(
                {key: [inputs[0].detach().reshape(-1, inputs[0].shape[-1]).numpy()]}
            )
        )
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        shape = (5, 4, model.query.in_features)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        model(x, frozenset(), frozenset()).square().mean().backward()
        gradients = {name: p.grad.numpy().copy() for name, p in named.items() if p.grad is not None}
        optimizer.step()
        for (names, kw), reference in zip(own, references, strict=True):
            mine = {name: gradients[name] for name in names}
            reference.step(weights, mine, seen, kw.get("lr", params.lr))
    for name, parameter in named.items():
        expected = torch.from_numpy(weights[name])
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-7, atol=1e-8, msg=name)


def test_inputs_of_a_skipped_step_are_forgotten() -> None:
    model = Gated(4, 5, 2)
    optimizer: Any = build_optimizer(model, optimizer_params(BASE, ""))
    model(torch.full((2, 3, 4), float("nan")), frozenset(), frozenset()).sum().backward()
    optimizer.forget()
    train(model, optimizer, range(2))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("values", [{}, {"dap_beta2": 0.0}, {"update_norm": True}], ids=str)
def test_a_step_does_not_write_to_gradients(values: dict[str, Any]) -> None:
    model = Gated(4, 5, 2)
    optimizer = build_optimizer(model, optimizer_params({**BASE, **values}, ""))
    model(torch.ones(2, 3, 4).cumsum(1), frozenset(), frozenset()).square().sum().backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(map(torch.equal, after, before))


@pytest.mark.parametrize("values", [{}, {"disable_preconditioning": True}], ids=str)
def test_weights_and_gradients_of_any_order_in_memory_step_alike(values: dict[str, Any]) -> None:
    params = optimizer_params({**BASE, **values}, "")
    model = Gated(4, 5, 2)
    turned = copy.deepcopy(model)
    for name in ("up", "value"):
        weight = getattr(turned, name).weight
        weight.data = weight.detach().T.contiguous().T
    x = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    for each in (model, turned):
        optimizer = build_optimizer(each, params)
        for _ in range(2):
            optimizer.zero_grad()
            each(x, frozenset(), frozenset()).square().mean().backward()
            if each is turned:
                for name in ("gate", "key"):
                    weight = getattr(turned, name).weight
                    weight.grad = weight.grad.T.contiguous().T
                turned.norm.weight.grad = turned.norm.weight.grad.repeat_interleave(2)[::2]
            optimizer.step()
    for ours, expected in zip(turned.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("values", [{}, {"dap_beta1": 0.0, "momentum": 0.5}], ids=str)
def test_a_clip_factor_is_worth_smaller_gradients_in_one_step(values: dict[str, Any]) -> None:
    params = optimizer_params({**BASE, **values, "dap_beta2": 0.0}, "")
    clipped = Gated(4, 5, 2)
    scaled = copy.deepcopy(clipped)
    x = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    for model in (clipped, scaled):
        optimizer: Any = build_optimizer(model, params)
        for factor in (0.25, 1.0):
            optimizer.zero_grad()
            model(x, frozenset(), frozenset()).square().mean().backward()
            if model is scaled:
                for parameter in model.parameters():
                    parameter.grad *= factor
            elif factor != 1:
                optimizer._clip_factor = torch.tensor(factor)
            optimizer.step()
    for ours, expected in zip(clipped.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.filterwarnings("ignore")  # what torch's compiler warns of is its own
def test_a_compiled_model_sums_the_same_inputs_once_and_is_compiled_once() -> None:
    torch.manual_seed(0)
    eager = GPT(GPTConfig(n_embd=32, n_layer=2, n_head=2, vocab_size=16), 8)
    net = copy.deepcopy(eager)
    params = optimizer_params({**BASE, "accelerated": 0.05, "dap_beta2": 0.0}, "")
    reference: Any = build_optimizer(eager, params)
    optimizer: Any = build_optimizer(net, params)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager")
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        batches = torch.randint(0, 16, (2, 4, 8), generator=generator)
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            for forward, stepped in ((eager, reference), (compiled, optimizer)):
                stepped.zero_grad()
                for tokens in batches:
                    forward(tokens, tokens).backward()
        watched = list(zip(optimizer._moments._sums, reference._moments._sums, strict=True))
        assert len(watched) == 10
        for weight, twin in watched:
            ours, expected = optimizer._moments.of(weight), reference._moments.of(twin)
            assert ours.rows == expected.rows == 64
            torch.testing.assert_close(ours.total_NN.tril(), expected.total_NN.tril())
        for block in net.blocks:
            fc, gate = (optimizer._moments.of(w.weight) for w in (block.mlp.c_fc, block.mlp.c_gate))
            assert fc is gate
        reference.step()
        optimizer.step()
    for weight, twin in zip(net.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(weight, twin, rtol=1e-5, atol=1e-6)


def test_the_kernel_takes_the_same_steps_in_tritons_interpreter(in_the_interpreter: Any) -> None:
    assert "3 passed" in in_the_interpreter("interpreted_dap.py")
