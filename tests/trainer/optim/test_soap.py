from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainer.optim import build_optimizer, optimizer_params
from trainer.optim.soap import Soap

SHAPES = [(5, 5), (4, 7), (7, 4), (4, 7), (1, 6), (3, 1)]
CASES: list[dict[str, Any]] = [
    {"precondition_frequency": 4},
    {"precondition_frequency": 4, "shampoo_beta": 0.7, "weight_decay": 0.3},
    {"precondition_frequency": 5, "betas": [0.6, 0.9], "eps": 1e-3},
    {"precondition_frequency": 5, "max_precond_dim": 5},
    {"precondition_frequency": 6, "max_precond_dim": 6, "betas": [0.0, 0.5], "shampoo_beta": 0.9},
]
SIDES = ("row", "column")


def random_weights(seed: int, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [nn.Parameter(weight.to(dtype)) for weight in drawn]


def random_gradients(weights: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        g = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        weight.grad = g.to(weight.dtype)


def soap(weights: list[nn.Parameter], params: Any) -> Soap:
    groups: list[dict[str, Any]] = [
        {"params": weights[:2], "rotated": True},
        {"params": weights[2:], "rotated": True, "lr": params.lr / 3, "weight_decay": 0.1},
    ]
    return Soap(groups, params)


def built(weights: list[nn.Parameter], **values: Any) -> Soap:
    return soap(weights, optimizer_params({"name": "soap", "lr": 0.03, **values}, ""))


def bases(optimizer: Soap, weight: nn.Parameter) -> tuple[Any, Any]:
    found = (optimizer.state[weight].get(f"{side}_basis") for side in SIDES)
    first, second = (None if basis is None else basis.double().numpy().copy() for basis in found)
    return first, second


@pytest.mark.parametrize("values", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_follow_the_formulas_from_the_first_eigenvectors_on(
    modern_oracle: ModuleType, values: dict[str, Any], dtype: torch.dtype
) -> None:
    weights = random_weights(0, dtype)
    optimizer = built(weights, **values)
    params = optimizer._params
    expected = [weight.detach().double().numpy().copy() for weight in weights]
    references: dict[int, Any] = {}
    for step in range(14):
        random_gradients(weights, step)
        if step % 3 == 1:
            weights[3].grad = None  # it falls behind the other of its shape
        optimizer.step()
        if step == 6:  # a checkpoint in the middle
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = soap(weights, params)
            optimizer.load_state_dict(saved)
        for i, weight in enumerate(weights):
            if weight.grad is None:
                continue
            g = weight.grad.double().numpy()
            lr, decay = (params.lr, params.weight_decay) if i < 2 else (params.lr / 3, 0.1)
            if i in references:
                expected[i] = references[i].step(expected[i], g, lr, decay)
            else:
                references[i] = modern_oracle.Soap(params, expected[i], bases(optimizer, weight))
                references[i].learn(g)
    tolerance = 1e-8 if dtype == torch.float64 else 3e-3
    for weight, w in zip(weights, expected, strict=True):
        ours = weight.detach().double()
        torch.testing.assert_close(ours, torch.from_numpy(w), rtol=tolerance, atol=tolerance)


def test_the_first_step_moves_no_matrix_and_finds_eigenvectors_largest_first() -> None:
    weights = random_weights(1)
    before = [weight.detach().clone() for weight in weights]
    optimizer = built(weights, weight_decay=0.5, shampoo_beta=0.75)
    random_gradients(weights, 0)
    optimizer.step()
    for weight, old in zip(weights, before, strict=True):
        assert torch.equal(weight.detach(), old)
        assert weight.grad is not None
        g = weight.grad.numpy()
        state = optimizer.state[weight]
        for side, moment in zip(SIDES, (g @ g.T / 4, g.T @ g / 4), strict=True):
            q, kept = state[f"{side}_basis"].numpy(), state[f"{side}_moment"].numpy()
            np.testing.assert_allclose(kept, moment, atol=1e-12)
            np.testing.assert_allclose(q.T @ q, np.eye(len(q)), atol=1e-12)
            turned = q.T @ moment @ q
            np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=1e-12)
            assert (np.diff(np.diag(turned)) <= 1e-12).all()


def test_refreshed_bases_close_in_on_the_eigenvectors() -> None:
    weights = [nn.Parameter(torch.zeros(6, 9, dtype=torch.float64))]
    params: Any = optimizer_params(
        {"name": "soap", "precondition_frequency": 1, "betas": [0.9, 0.99]}, ""
    )
    optimizer = Soap([{"params": weights, "rotated": True}], params)
    scale = torch.logspace(0, -1.5, 6, dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        g = torch.randn(6, 9, generator=generator, dtype=torch.float64)
        weights[0].grad = scale * g
        optimizer.step()
    state = optimizer.state[weights[0]]
    q, moment = state["row_basis"], state["row_moment"]
    vectors = torch.linalg.eigh(moment).eigenvectors.flip(-1)
    torch.testing.assert_close((q.T @ vectors).abs(), torch.eye(6).double(), atol=0.05, rtol=0)


def test_a_side_that_is_too_long_is_left_as_it_is() -> None:
    weights = random_weights(2)
    optimizer = built(weights, max_precond_dim=5)
    random_gradients(weights, 0)
    optimizer.step()
    for weight in weights:
        for side, size in zip(SIDES, weight.shape, strict=True):
            assert (f"{side}_basis" in optimizer.state[weight]) == (size <= 5)


def test_matrices_of_one_shape_move_as_they_would_alone() -> None:
    together = random_weights(3)
    alone = [nn.Parameter(weight.detach().clone()) for weight in together]
    one = built(together, precondition_frequency=2)
    others = [built([weight], precondition_frequency=2) for weight in alone[:2]]
    for step in range(6):
        random_gradients(together, step)
        for weight, twin in zip(together, alone, strict=True):
            twin.grad = weight.grad
        one.step()
        for other in others:
            other.step()
    torch.testing.assert_close(together[:2], alone[:2], rtol=1e-9, atol=1e-9)


def test_turning_the_matrix_turns_its_steps() -> None:
    """What Adam in a fixed basis does not do."""
    generator = torch.Generator().manual_seed(4)
    u, v = (
        torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
        for n in (5, 5)
    )
    plain = [nn.Parameter(torch.zeros(5, 5, dtype=torch.float64))]
    turned = [nn.Parameter(torch.zeros(5, 5, dtype=torch.float64))]
    optimizers = [built(weights, precondition_frequency=2) for weights in (plain, turned)]
    for step in range(6):
        random_gradients(plain, step)
        assert plain[0].grad is not None
        turned[0].grad = u @ plain[0].grad @ v
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(turned[0].detach(), u @ plain[0].detach() @ v, rtol=1e-7, atol=1e-7)


def test_everything_else_and_matrices_of_two_long_sides_move_by_adamw(net: Any) -> None:
    params: Any = optimizer_params({"name": "soap", "lr": 0.03, "max_precond_dim": 0}, "")
    twin = copy.deepcopy(net)
    ours = build_optimizer(net, params)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.03, betas=(0.95, 0.95), weight_decay=0.0)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for weight, other in zip(net.parameters(), twin.parameters(), strict=True):
            weight.grad = torch.randn(weight.shape, generator=generator).double()
            other.grad = weight.grad
        ours.step()
        theirs.step()
    for weight, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-12, atol=1e-12)


def test_half_precision_weights_have_bases_in_fp32() -> None:
    weights = random_weights(5, torch.bfloat16)
    optimizer = built(weights, precondition_frequency=2)
    for step in range(5):
        random_gradients(weights, step)
        optimizer.step()
    for weight in weights:
        assert weight.isfinite().all()
        assert optimizer.state[weight]["row_basis"].dtype == torch.float32


def test_matrices_of_several_types_in_one_group_move_as_they_would_alone() -> None:
    types = (torch.float32, torch.bfloat16, torch.float64, torch.bfloat16, torch.float32)
    drawn = random_weights(12)
    mixed = [nn.Parameter(w.detach().to(t)) for w, t in zip(drawn, types, strict=False)]
    alone = [nn.Parameter(weight.detach().clone()) for weight in mixed]
    values = {"name": "soap", "lr": 0.03, "precondition_frequency": 2}
    params: Any = optimizer_params(values, "")
    together = Soap([{"params": mixed, "rotated": True}], params)
    others = [Soap([{"params": [weight], "rotated": True}], params) for weight in alone]
    for step in range(6):
        random_gradients(mixed, step)
        for weight, twin in zip(mixed, alone, strict=True):
            twin.grad = weight.grad
        together.step()
        for other in others:
            other.step()
    for weight, twin in zip(mixed, alone, strict=True):
        torch.testing.assert_close(
            weight, twin, rtol=1e-2 if weight.dtype == types[1] else 1e-4, atol=1e-4
        )


def test_a_resumed_run_with_refreshes_continues_to_the_bit() -> None:
    weights = random_weights(6, torch.float32)
    optimizer = built(weights, precondition_frequency=2)
    for step in range(3):
        random_gradients(weights, step)
        optimizer.step()
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights]
    resumed = built(twins, precondition_frequency=2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 8):
        for each, stepped in ((weights, optimizer), (twins, resumed)):
            random_gradients(each, step)
            stepped.step()
    for weight, twin in zip(weights, twins, strict=True):
        assert torch.equal(weight, twin)


def test_a_gradient_of_zeros_moves_nothing() -> None:
    weights = random_weights(7)
    optimizer = built(weights, precondition_frequency=1)
    optimizer.param_groups[1]["weight_decay"] = 0.0
    before = [weight.detach().clone() for weight in weights]
    for _ in range(4):
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
    for weight, old in zip(weights, before, strict=True):
        assert torch.equal(weight.detach(), old)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_shows_in_the_weights_at_once(
    first: bool, value: float
) -> None:
    weights = random_weights(8)
    optimizer = built(weights, precondition_frequency=1)
    if not first:
        random_gradients(weights, 0)
        optimizer.step()
    random_gradients(weights, 1)
    assert weights[1].grad is not None
    weights[1].grad[0, 0] = value
    optimizer.step()
    assert not weights[1].isfinite().all()
    assert weights[0].isfinite().all()


def test_a_caller_who_replays_steps_refreshes_the_bases_as_eager_steps_do() -> None:
    weights, twins = random_weights(9), random_weights(9)
    ours, eager = (built(each, precondition_frequency=3) for each in (weights, twins))
    for step in range(12):
        for each, optimizer in ((weights, ours), (twins, eager)):
            random_gradients(each, step)
            if each is weights and step >= 2:
                # What capturing a step leaves behind: replays count on the device alone.
                optimizer._device_counts = True
            optimizer.step()
        if step % 3 == 0 and step:
            assert not torch.equal(
                ours.state[weights[0]]["row_basis"], eager.state[twins[0]]["row_basis"]
            )
            ours.refresh()
    for weight, twin in zip(weights, twins, strict=True):
        torch.testing.assert_close(weight, twin, rtol=1e-12, atol=1e-12)
        basis, expected = bases(ours, weight), bases(eager, twin)
        np.testing.assert_allclose(basis[0], expected[0], rtol=1e-9, atol=1e-12)


def test_a_weight_begins_beside_others_whose_steps_only_the_device_counts() -> None:
    weights, twins = random_weights(10), random_weights(10)
    ours, eager = built(weights), built(twins)
    for step in range(5):
        for each, optimizer in ((weights, ours), (twins, eager)):
            random_gradients(each, step)
            if step < 3:
                each[1].grad = each[4].grad = None
            optimizer._device_counts |= each is weights and step >= 2
            optimizer.step()
    for weight, twin in zip(weights, twins, strict=True):
        torch.testing.assert_close(weight, twin, rtol=1e-12, atol=1e-12)
    assert ours.state[weights[1]]["step"] == 2


def test_weights_of_another_order_in_memory_step_alike() -> None:
    weights = random_weights(11, torch.float32)
    turned = [nn.Parameter(weight.detach().T.contiguous().T) for weight in weights]
    optimizers = built(weights, precondition_frequency=2), built(turned, precondition_frequency=2)
    for step in range(5):
        random_gradients(weights, step)
        for weight, other in zip(weights, turned, strict=True):
            assert weight.grad is not None
            other.grad = weight.grad.T.contiguous().T if step % 2 else weight.grad
        for optimizer in optimizers:
            optimizer.step()
    for weight, other in zip(weights, turned, strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-4, atol=1e-5)


def test_the_kernel_takes_the_same_steps_in_tritons_interpreter(in_the_interpreter: Any) -> None:
    assert "4 passed" in in_the_interpreter("interpreted_soap.py")
