"""Run by test_adamw.py in a process of its own, where Triton's interpreter takes CPU tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer.kernels import AdamWScalars, adamw_step
from trainer.kernels.chunks import BLOCK, CHUNK
from trainer.kernels.operands import Slot
from trainer.optim.adamw import KernelAdamW

HYPER: dict[str, Any] = {"lr": 3e-2, "betas": (0.9, 0.97), "eps": 1e-8, "weight_decay": 0.1}
SHAPES = [
    pytest.param([(1,)], id="one number"),
    pytest.param([(BLOCK,), (BLOCK + 1,), (BLOCK - 1,)], id="around a block"),
    pytest.param([(CHUNK + 3,), (2, CHUNK)], id="around a chunk"),
    pytest.param([(7, 5), (), (0,), (33,), (3, 4, 5)], id="odd shapes, a scalar, an empty tensor"),
]


def random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slots_of(shapes: list[tuple[int, ...]]) -> list[Slot]:
    return [
        Slot(random(s, i), random(s, 100 + i), torch.zeros(s), torch.zeros(s))
        for i, s in enumerate(shapes)
    ]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("clip", [None, 0.25])
def test_the_kernel_agrees_with_the_oracle_and_the_twin(
    shapes: list[tuple[int, ...]], clip: float | None, adamw_oracle: Any
) -> None:
    ours, twins = slots_of(shapes), slots_of(shapes)
    oracles = [adamw_oracle(slot.weight) for slot in ours]
    factor = None if clip is None else torch.tensor(clip)
    for step in range(1, 4):
        gradients = [random(shape, 10 * step + i) for i, shape in enumerate(shapes)]
        scalars = AdamWScalars(3e-2, 0.9, 0.97, 1e-8, 0.1, step)
        now = [s._replace(gradient=g) for s, g in zip(ours, gradients, strict=True)]
        adamw_step(now, scalars, "triton", factor)
        now = [s._replace(gradient=g) for s, g in zip(twins, gradients, strict=True)]
        adamw_step(now, scalars, "torch", factor)
        for oracle, gradient in zip(oracles, gradients, strict=True):
            oracle.step(gradient * (1.0 if clip is None else clip), **HYPER)
    for our, twin, oracle in zip(ours, twins, oracles, strict=True):
        torch.testing.assert_close(our.weight.double(), oracle.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(our.exp_avg.double(), oracle.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(our.exp_avg_sq.double(), oracle.square, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(our.weight, twin.weight, rtol=1e-5, atol=1e-6)


def test_gradients_and_weights_in_another_order_or_off_alignment(adamw_oracle: Any) -> None:
    transposed = random((30, 50), 1).t()
    unaligned = random((2 * BLOCK + 1,), 2)[1:]
    weights = [transposed, random((30, 50), 3), unaligned]
    gradients = [random((50, 30), 4), random((50, 30), 5).t(), random((2 * BLOCK,), 6)]
    slots = [
        Slot(w, g, torch.zeros_like(w), torch.zeros_like(w))
        for w, g in zip(weights, gradients, strict=True)
    ]
    oracles = [adamw_oracle(weight) for weight in weights]
    adamw_step(slots, AdamWScalars(3e-2, 0.9, 0.97, 1e-8, 0.1, 1), "triton")
    for oracle, gradient, weight in zip(oracles, gradients, weights, strict=True):
        oracle.step(gradient, **HYPER)
        torch.testing.assert_close(weight.double(), oracle.weight, rtol=1e-5, atol=1e-6)


def test_a_step_changes_nothing_beside_its_tensors() -> None:
    memory = [random((BLOCK + 40,), i) for i in range(4)]
    before = [tensor.clone() for tensor in memory]
    slot = Slot(*(tensor[8 : BLOCK + 13] for tensor in memory))
    slot.exp_avg_sq.abs_()
    adamw_step([slot], AdamWScalars(3e-2, 0.9, 0.97, 1e-8, 0.1, 1), "triton")
    for now, then in zip(memory, before, strict=True):
        assert torch.equal(now[:8], then[:8])
        assert torch.equal(now[BLOCK + 13 :], then[BLOCK + 13 :])
    assert torch.equal(memory[1], before[1])


# The interpreter computes in numpy, which warns of inf / inf.
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_non_finite_gradient_stays_with_its_own_number(adamw_oracle: Any) -> None:
    [slot] = slots_of([(BLOCK + 9,)])
    slot.gradient[3] = float("nan")
    slot.gradient[BLOCK + 2] = float("inf")
    oracle = adamw_oracle(slot.weight)
    adamw_step([slot], AdamWScalars(3e-2, 0.9, 0.97, 1e-8, 0.1, 1), "triton")
    oracle.step(slot.gradient, **HYPER)
    assert slot.weight.isnan().sum() == 2
    torch.testing.assert_close(
        slot.weight.double(), oracle.weight, rtol=1e-5, atol=1e-6, equal_nan=True
    )


def parameters(seed: int) -> list[torch.nn.Parameter]:
    shapes = [(17, 9), (5,), (BLOCK + 1,)]
    return [torch.nn.Parameter(random(shape, seed + i)) for i, shape in enumerate(shapes)]


def train(optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Every third step the middle weight has no gradient."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for step in steps:
        for i, weight in enumerate(weights):
            absent = i == 1 and step % 3 == 1
            weight.grad = None if absent else random(tuple(weight.shape), 50 * step + i)
        optimizer.step()


@pytest.mark.parametrize("first", ["torch", "triton"])
def test_a_checkpoint_of_one_backend_continues_under_the_other(first: str) -> None:
    undisturbed = parameters(0)
    train(torch.optim.AdamW(undisturbed, **HYPER), range(6))

    def build(backend: str, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        if backend == "torch":
            return torch.optim.AdamW(weights, **HYPER, fused=True)
        return KernelAdamW(weights, **HYPER, backend="triton")

    weights = parameters(0)
    before = build(first, weights)
    train(before, range(3))
    after = build("triton" if first == "torch" else "torch", weights)
    after.load_state_dict(before.state_dict())
    train(after, range(3, 6))
    for weight, expected in zip(weights, undisturbed, strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)


def test_clipping_holds_for_one_step_and_leaves_the_gradient_alone() -> None:
    weights, scaled = parameters(0), parameters(0)
    ours = KernelAdamW(weights, **HYPER, backend="triton")
    theirs = torch.optim.AdamW(scaled, **HYPER)
    for step, limit in enumerate((0.1, None)):
        for i, (weight, twin) in enumerate(zip(weights, scaled, strict=True)):
            weight.grad = random(tuple(weight.shape), 50 * step + i)
            twin.grad = weight.grad.clone()
        if limit is not None:
            norm = ours.clip_grad_norm(limit)
            torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(scaled, limit))
        ours.step()
        theirs.step()
    assert weights[0].grad is not None
    assert torch.equal(weights[0].grad, random((17, 9), 50))
    for weight, expected in zip(weights, scaled, strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)


def test_two_runs_agree_to_the_bit() -> None:
    first, second = parameters(0), parameters(0)
    for weights in (first, second):
        train(KernelAdamW(weights, **HYPER, backend="triton"), range(4))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
