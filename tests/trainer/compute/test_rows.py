"""The gradient of a batch, each thread with rows of its own, beside the whole batch's."""

from __future__ import annotations

import pytest
import torch

from trainer.compute.rows import row_threads
from trainer.config import GPTConfig
from trainer.model import GPT
from trainer.optim import build_optimizer
from trainer.optim.params import optimizer_params

CPU = torch.device("cpu")
CONTEXT = 64


@pytest.fixture(params=[2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def a_model(*, tied=True):
    torch.manual_seed(0)
    config = GPTConfig(n_embd=48, n_layer=2, n_head=2, vocab_size=64, tie_embeddings=tied)
    return GPT(config, CONTEXT)


def a_batch(seed=0, rows=12):
    tokens = torch.randint(64, (rows, CONTEXT + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def gradients(model):
    return [weight.grad.clone() for weight in model.parameters()]


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradient_are_those_of_the_whole_batch(threads, tied):
    ours, whole = a_model(tied=tied), a_model(tied=tied)
    rows = row_threads(ours, CPU)
    for seed in range(2):  # the second adds to the first
        expected = whole(*a_batch(seed)) / 2
        expected.backward()
        loss = rows.backward(lambda batch: ours(*batch), a_batch(seed), 2)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
    for mine, theirs in zip(gradients(ours), gradients(whole), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
    for weight in ours.parameters():
        assert weight.grad.stride() == weight.stride()


def test_which_thread_ends_first_changes_no_bit(threads):
    model = a_model()
    rows = row_threads(model, CPU)
    found = []
    for _ in range(5):
        model.zero_grad()
        loss = rows.backward(lambda batch: model(*batch), a_batch())
        found.append([loss, *gradients(model)])
    assert all(torch.equal(a, b) for each in found[1:] for a, b in zip(found[0], each, strict=True))


def test_every_thread_has_rows_of_its_own(threads):
    model = a_model()
    seen = []

    def loss_of(batch):
        seen.append((len(batch[0]), torch.get_num_threads(), torch.is_grad_enabled()))
        return model(*batch)

    # The costs are of a larger model: small ones are not worth handing over.
    rows = row_threads(model, CPU)
    rows._flops = 1e9
    with torch.no_grad():
        rows.backward(loss_of, a_batch())
    assert seen == [(12 // threads, 1, True)] * threads
    assert torch.get_num_threads() == threads


def test_rows_that_threads_cannot_share_evenly_stay_together(threads):
    rows = row_threads(a_model(), CPU)
    assert rows.fits(12)
    assert not rows.fits(13)
    torch.set_num_threads(1)
    assert not rows.fits(12)


def test_a_large_model_stays_together(threads, monkeypatch):
    monkeypatch.setattr("trainer.compute.rows.MOST_NUMBERS", 1000)
    assert not row_threads(a_model(), CPU).fits(12)


def test_nothing_is_shared_where_others_look_at_the_layers():
    model = a_model()
    build_optimizer(model, optimizer_params({"name": "dap-ns-nadam", "lr": 0.01}, ""))
    assert row_threads(model, CPU) is None
    recomputing = a_model()
    recomputing.activation_checkpointing = True
    assert row_threads(recomputing, CPU) is None
    assert row_threads(torch.nn.Linear(2, 2), CPU) is None
    assert row_threads(a_model(), torch.device("cuda")) is None


def test_what_fails_in_a_thread_fails_the_step(threads):
    model = a_model()

    def loss_of(_):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        row_threads(model, CPU).backward(loss_of, a_batch())
