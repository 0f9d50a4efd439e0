"""What only a GPU can show of the elementwise kernels; their numbers are tested without one too."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import nn

from trainer.optim import build_optimizer, optimizer_params

CASES: list[dict[str, Any]] = [
    {"name": "adam", "betas": [0.9, 0.97], "weight_decay": 0.1},
    {"name": "adamw", "betas": [0.9, 0.999], "weight_decay": 0.1},
    {"name": "nadam", "betas": [0.8, 0.97], "weight_decay": 0.1, "momentum_decay": 4e-3},
    {"name": "nadamw", "betas": [0.8, 0.97], "weight_decay": 0.1},
    {"name": "lion", "betas": [0.6, 0.9], "weight_decay": 0.1},
    {"name": "sign-gd", "momentum": 0.7, "weight_decay": 0.1},
    {"name": "sign-gd", "momentum": 0.7, "nesterov": True},
    {"name": "sign-gd-nonlmo", "lr": 1e-9, "weight_decay": 0.1},
    {"name": "sign-gd-nonlmo", "lr": 1e-9, "nesterov": True},
    {"name": "momo", "weight_decay": 0.1, "lb": 0.5},
    {"name": "momo-star", "weight_decay": 0.1, "bias_correction": True, "beta": 0.6, "lb": -2.0},
    {"name": "momo-adam", "weight_decay": 0.1, "lb": 0.5},
    {"name": "momo-adam", "weight_decay": 0.1, "divide": False},
    {"name": "momo-adam-star", "weight_decay": 0.1, "lb": -2.0},
    {"name": "ademamix", "weight_decay": 0.1, "alpha_warmup": 3, "beta3_warmup": 4},
    {"name": "mars", "weight_decay": 0.1},
    {"name": "mars", "optimize_1d": True, "gamma": 0.5},
    {"name": "schedule-free-adamw", "weight_decay": 0.1, "warmup_steps": 3},
]
STEPS = 6
SIGNS = ("lion", "sign-gd", "sign-gd-nonlmo")


class Weights(nn.Module):
    """Weights of random shapes, some of odd sizes, one off alignment, one in another order."""

    def __init__(self, seed: int, device: torch.device) -> None:
        super().__init__()
        draw = random.Random(seed)
        shapes: list[tuple[int, ...]] = [(), (0,), (1,), (8192,), (8193,), (1023, 3)]
        shapes += [(draw.randint(1, 400), draw.randint(1, 400)) for _ in range(6)]
        torch.manual_seed(seed)
        tensors = [torch.randn(shape, device=device) for shape in shapes]
        tensors += [torch.randn(4097, device=device)[1:], torch.randn(60, 50, device=device).t()]
        self.all = nn.ParameterList(nn.Parameter(tensor) for tensor in tensors)


def build(model: nn.Module, values: dict[str, Any], backend: str = "triton") -> Any:
    """An optimizer of two groups or three; ``twin`` is the kernel's reference in torch."""
    params = optimizer_params({"lr": 1e-3, **values, "backend": "triton"}, "")
    optimizer: Any = build_optimizer(model, params)
    group = optimizer.param_groups[0]
    second = {**group, "lr": group["lr"] / 2, "initial_lr": group["lr"] / 2, "weight_decay": 0.3}
    second["params"], group["params"] = group["params"][6:], group["params"][:6]
    optimizer.add_param_group(second)
    if backend == "twin":
        optimizer.backend = "torch"
    return optimizer


def gradients(model: nn.Module, step: int) -> list[torch.Tensor]:
    torch.manual_seed(1000 + step)
    return [torch.randn_like(weight) for weight in model.parameters()]


def set_gradients(model: nn.Module, step: int) -> None:
    """Written where they lie from the second step on."""
    for weight, gradient in zip(model.parameters(), gradients(model, step), strict=True):
        if weight.grad is None:
            weight.grad = gradient
        else:
            weight.grad.copy_(gradient)


def losses(device: torch.device) -> torch.Tensor:
    return torch.tensor([4.0, 2.0, 1.0, 6.0, 0.1, 3.0], device=device)


def train(model: nn.Module, optimizer: Any, steps: range, clip: float | None) -> None:
    every = losses(next(model.parameters()).device)
    for step in steps:
        set_gradients(model, step)
        if clip is not None:
            optimizer.clip_grad_norm(clip)
        optimizer.step(lambda step=step: every[step])


def assert_alike(ours: nn.Module, theirs: nn.Module, name: str) -> None:
    """Up to rounding, which at 0 may turn a sign: of a few numbers in a hundred thousand."""
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        if name in SIGNS:
            far = ((a - b).abs() > 1e-6 + 1e-5 * b.abs()).sum().item()
            assert far <= 2 + 1e-4 * a.numel()
        else:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("values", CASES, ids=str)
@pytest.mark.parametrize("clip", [None, 10.0])
def test_steps_over_random_shapes_are_the_twins(
    cuda: torch.device, values: dict[str, Any], clip: float | None
) -> None:
    for seed in range(3):
        ours, theirs = Weights(seed, cuda), Weights(seed, cuda)
        train(ours, build(ours, values), range(STEPS), clip)
        train(theirs, build(theirs, values, "twin"), range(STEPS), clip)
        assert_alike(ours, theirs, values["name"])


@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {}),
        ("nadam", torch.optim.NAdam, {}),
        ("nadamw", torch.optim.NAdam, {"decoupled_weight_decay": True}),
    ],
)
def test_a_checkpoint_goes_from_torch_to_the_kernel_and_back(
    cuda: torch.device, name: str, cls: Any, options: Any
) -> None:
    hyper: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.97), "eps": 1e-8, "weight_decay": 0.1}

    def torchs(model: nn.Module) -> Any:
        return cls(model.parameters(), **hyper, **options)

    def steps(model: nn.Module, optimizer: Any, which: range) -> None:
        for step in which:
            set_gradients(model, step)
            optimizer.step()

    undisturbed, model = Weights(0, cuda), Weights(0, cuda)
    steps(undisturbed, torchs(undisturbed), range(6))
    first, last = torchs(model), torchs(model)
    steps(model, first, range(2))
    params = optimizer_params({"name": name, **hyper, "backend": "triton"}, "")
    between = build_optimizer(model, params)
    between.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(model, between, range(2, 4))
    last.load_state_dict(copy.deepcopy(between.state_dict()))
    steps(model, last, range(4, 6))
    assert_alike(model, undisturbed, name)


@pytest.mark.parametrize("values", CASES, ids=str)
def test_a_step_with_its_clip_never_waits_for_the_device(
    cuda: torch.device, no_sync: Any, values: dict[str, Any]
) -> None:
    model = Weights(0, cuda)
    optimizer = build(model, values)
    train(model, optimizer, range(2), clip=1.0)
    every = losses(cuda)
    fresh = [gradients(model, step) for step in range(2, STEPS)]
    with no_sync():
        for step, new in enumerate(fresh, start=2):
            # Other addresses each time, so that tables are copied to the device too.
            for weight, gradient in zip(model.parameters(), new, strict=True):
                weight.grad = gradient
            loss = every[step]
            optimizer.clip_grad_norm(1.0)
            optimizer.step(lambda loss=loss: loss)


@pytest.mark.parametrize("values", CASES, ids=str)
def test_nothing_is_compiled_when_rates_and_steps_change(
    cuda: torch.device, values: dict[str, Any]
) -> None:
    from trainer.kernels import elementwise_triton, norm_triton, numbers_triton

    kernels = (
        elementwise_triton.elementwise_kernel,
        numbers_triton.corrections_kernel,
        numbers_triton.slow_kernel,
        numbers_triton.free_kernel,
        numbers_triton.totals_kernel,
        numbers_triton.clip_kernel,
        norm_triton.squares_kernel,
        norm_triton.factor_kernel,
    )

    def programs() -> int:
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    model = Weights(0, cuda)
    optimizer = build(model, values)
    train(model, optimizer, range(1), clip=1.0)
    before = programs()
    assert before
    for step, lr in enumerate((1, 0, 0.0, 1.0, 1e-3, 16), start=0):
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, step
        train(model, optimizer, range(step, step + 1), clip=float(step))
    other = Weights(1, cuda)
    train(other, build(other, values), range(2), clip=None)
    assert programs() == before


@pytest.mark.parametrize("values", CASES, ids=str)
@pytest.mark.parametrize(("backend", "clip"), [("triton", None), ("triton", 10.0), ("twin", 10.0)])
def test_a_captured_step_replayed_is_as_many_steps(
    cuda: torch.device, values: dict[str, Any], backend: str, clip: float | None
) -> None:
    ours, theirs = Weights(0, cuda), Weights(0, cuda)
    eager, captured = build(theirs, values, backend), build(ours, values, backend)
    # Tensors from the first step on: reading a rate from memory is another program to compile.
    for group in captured.param_groups:
        group["lr"] = torch.tensor(group["lr"], device=cuda)
    train(theirs, eager, range(2), clip)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        train(ours, captured, range(2), clip)
    torch.cuda.current_stream().wait_stream(stream)
    loss = torch.zeros((), device=cuda)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        if clip is not None:
            captured.clip_grad_norm(clip)
        captured.step(lambda: loss)
    every = losses(cuda)
    for step in range(2, STEPS):
        factor = 1 / step
        for ours_group, group in zip(captured.param_groups, eager.param_groups, strict=True):
            group["lr"] = group["initial_lr"] * factor
            ours_group["lr"].fill_(group["lr"])
        train(theirs, eager, range(step, step + 1), clip)
        set_gradients(ours, step)
        loss.copy_(every[step])
        graph.replay()
    assert_alike(ours, theirs, "")
    if "adam" in values["name"]:
        assert captured.state[ours.all[3]]["step"].item() == STEPS


def test_a_graph_may_hold_the_whole_step_with_gradients_of_its_own(cuda: torch.device) -> None:
    def make() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(33, 65), nn.Tanh(), nn.Linear(65, 7)).to(cuda)
        params = optimizer_params({"name": "adamw", "lr": 1e-2, "backend": "triton"}, "")
        return model, build_optimizer(model, params)

    torch.manual_seed(1)
    batches = torch.randn(8, 16, 33, device=cuda)
    batch = batches[0].clone()

    def step(model: nn.Module, optimizer: Any, inputs: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        model(inputs).square().mean().backward()
        optimizer.clip_grad_norm(0.1)
        optimizer.step()

    (ours, captured), (theirs, eager) = make(), make()
    for inputs in batches:
        step(theirs, eager, inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(3):
            step(ours, captured, batches[i])
    torch.cuda.current_stream().wait_stream(stream)
    captured.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(ours, captured, batch)
    for i in range(3, 8):
        batch.copy_(batches[i])
        graph.replay()
    assert_alike(ours, theirs, "")


def test_a_first_step_cannot_be_captured(cuda: torch.device) -> None:
    model = Weights(0, cuda)
    optimizer = build(model, CASES[1])
    set_gradients(model, 0)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        model.all[0].grad.add_(1)  # an empty graph would be warned of
        with pytest.raises(RuntimeError, match="take a step before capturing"):
            optimizer.step()


@pytest.mark.parametrize("values", CASES, ids=str)
def test_two_runs_agree_to_the_bit(cuda: torch.device, values: dict[str, Any]) -> None:
    models = Weights(0, cuda), Weights(0, cuda)
    for model in models:
        train(model, build(model, values), range(STEPS), clip=1.0)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)
