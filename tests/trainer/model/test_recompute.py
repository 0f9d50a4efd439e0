"""Activation checkpointing: less memory, the same gradients, and no forward pass counted twice."""

from __future__ import annotations

import weakref

import pytest
import torch

from trainer import GPTConfig
from trainer.model import GPT
from trainer.optim import build_optimizer
from trainer.optim.params import optimizer_params

SHAPE = GPTConfig(n_embd=32, n_layer=4, n_head=2, vocab_size=50)
TOKENS = torch.randint(50, (2, 4, 32), generator=torch.Generator().manual_seed(1))


def build(*, again: bool) -> GPT:
    torch.manual_seed(0)
    model = GPT(SHAPE, context=32)
    model.activation_checkpointing = again
    return model


def kept_bytes(model: GPT) -> int:
    """Return the bytes of activations that live between the forward and the backward pass."""
    alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            alive[storage.data_ptr()] = weakref.ref(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(*TOKENS)
    total = sum(s.nbytes() for s in (ref() for ref in alive.values()) if s is not None)
    loss.backward()
    return total


def test_gradients_are_the_same_to_the_bit() -> None:
    gradients = []
    for again in (False, True):
        model = build(again=again)
        model(*TOKENS).backward()
        gradients.append([weight.grad for weight in model.parameters()])
    for plain, repeated in zip(*gradients, strict=True):
        assert torch.equal(plain, repeated)


def test_most_activations_are_not_kept() -> None:
    assert kept_bytes(build(again=True)) < 0.4 * kept_bytes(build(again=False))


@pytest.mark.parametrize("values", [{}, {"xtx_subsample": 0.5, "mb_subsampling": True}])
def test_dap_sees_each_input_once(values: dict[str, object]) -> None:
    """It looks at inputs in forward passes, and counts them."""
    moved = []
    for again in (False, True):
        model = build(again=again)
        params = optimizer_params({"name": "dap-ns-nadam", "lr": 0.01, **values}, "")
        optimizer = build_optimizer(model, params)
        for _ in range(2):
            for tokens in TOKENS.unbind(1):  # micro-batches
                model(tokens[:1], tokens[1:]).backward()
            optimizer.step()
            optimizer.zero_grad()
        moved.append(list(model.parameters()))
    for plain, repeated in zip(*moved, strict=True):
        assert torch.equal(plain, repeated)


def test_validation_repeats_nothing() -> None:
    model = build(again=True).eval()
    with torch.no_grad():
        evaluated = model(*TOKENS)
    assert torch.equal(evaluated, build(again=False)(*TOKENS).detach())
