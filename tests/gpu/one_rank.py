"""What ranks do, by a process group of one: ``python one_rank.py DEVICE FILE``.

A run of one process has no group. Here it has one, as on a machine with several GPUs: gloo for what
lies on the host, NCCL for what lies on the device.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
import torch.distributed as dist

from trainer import GPTConfig
from trainer.model import GPT
from trainer.optim import build_optimizer, optimizer_params
from trainer.parallel import Ranks, keep
from trainer.sharding import Shards

device = torch.device(sys.argv[1])
backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
if device.type == "cuda":
    torch.cuda.set_device(device)
dist.init_process_group(backend, init_method=f"file://{sys.argv[2]}", rank=0, world_size=1)
keep(dist.group.WORLD)
ranks = Ranks(0, 2, device)  # of one rank nothing would be asked
assert ranks.sum(torch.full((2,), 3.0, device=device)).tolist() == [3, 3]
assert ranks.mean(torch.full((), 3.0, device=device)).item() == 1.5
assert ranks.agreed(None) is None
assert ranks.agreed("SIGUSR1") == "SIGUSR1"
assert ranks.told_by(0, {"step": 3}) == {"step": 3}

torch.manual_seed(0)
plain = GPT(GPTConfig(n_embd=64, n_layer=2, n_head=4, vocab_size=70), 16).to(device)
copied, cut = copy.deepcopy(plain), copy.deepcopy(plain)
averaging = ranks.averaging(copied)
shards = Shards(cut, list(cut.blocks), device)
params = optimizer_params({"name": "adamw", "lr": 0.01}, "")
optimizers = [build_optimizer(model, params) for model in (plain, copied, shards.parts)]


def step(tokens: torch.Tensor) -> list[float]:
    """Take a step of each, and return the losses."""
    losses = []
    forwards: list[Any] = [plain, averaging, cut]
    for forward, optimizer in zip(forwards, optimizers, strict=True):
        loss = forward(tokens, tokens)
        loss.backward()
        if forward is cut:
            shards.take_gradients()
        optimizer.clip_grad_norm(1.0)  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


for _ in range(3):
    one, *others = step(torch.randint(0, 70, (4, 16), device=device))
    assert all(abs(other - one) < 1e-4 * one for other in others), (one, others)
# An optimizer keeps its state for weights that stay where they were.
for whole, part in zip(cut.parameters(), shards.parts.parameters(), strict=True):
    assert whole.to_local().data_ptr() == part.data_ptr()  # type: ignore[attr-defined]
model, state = shards.state_dicts(optimizers[2])
for name, weight in plain.state_dict().items():
    torch.testing.assert_close(model[name], weight.cpu(), rtol=1e-4, atol=1e-5)
assert all(
    tensor.device.type == "cpu" for each in state["state"].values() for tensor in each.values()
)
shards.load_state_dicts(optimizers[2], model, state)
one, *others = step(torch.randint(0, 70, (4, 16), device=device))
assert all(abs(other - one) < 1e-4 * one for other in others), (one, others)
dist.destroy_process_group()
