"""The two sides of benchmarks/optimizers.py: our optimizers, and what users would pick instead.

All work on a GPT's parameters with random gradients; both sides of a comparison have models of
their own, drawn alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from clock import Side
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trainer import GPTConfig
from trainer.model import GPT
from trainer.optim import build_optimizer, inverse, optimizer_params
from trainer.optim.groups import split_parameters

LR, WEIGHT_DECAY, CLIP = 1e-6, 0.1, 1.0
"""The rate is so small that hundreds of steps along one gradient leave the weights as drawn."""

BETAS, EPS, MOMENTUM, MUON_MOMENTUM = (0.95, 0.95), 1e-8, 0.9, 0.95
"""The registry's defaults, for the other side."""

CONTEXT = 64
"""Tokens of a sequence of the inputs that are sent through the blocks."""

ROWS_PER_SIDE = 2
"""Least rows of those inputs over a matrix's longer side: fewer make second moments singular."""

CHEBYSHEV_STEPS = 20
"""More than that iteration takes at the default rcond, however soon the power method stops."""

_JORDAN = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class Shapes:
    """The parameters of a GPT."""

    size: str
    config: GPTConfig
    blocks_only: bool = False
    """Leave embedding and head out, such that nearly everything is a matrix."""

    @classmethod
    def of(cls, size: str, config: GPTConfig, most_blocks: int, **more: bool) -> Shapes:
        """Keep at most so many blocks: on a CPU a step's time is proportional to them."""
        return cls(size, replace(config, n_layer=min(config.n_layer, most_blocks)), **more)

    def __str__(self) -> str:
        only = " matrices" if self.blocks_only else ""
        return f"{self.size}{only}, {self.config.n_layer} block{'s'[: self.config.n_layer - 1]}"

    @property
    def key(self) -> str:
        """Name in the JSON line."""
        kind = "-matrices" if self.blocks_only else ""
        return f"{self.size}{kind}-{self.config.n_layer}"

    @property
    def sequences(self) -> int:
        """How many sequences go through the blocks at once, as inputs to look at."""
        longest = max(3 * self.config.n_embd, self.config.ffn_width)
        return -(-ROWS_PER_SIDE * longest // CONTEXT)

    def model(self, device: torch.device) -> nn.Module:
        """Draw weights and gradients."""
        torch.manual_seed(0)
        with device:
            gpt = GPT(self.config, CONTEXT)
        model = gpt.blocks if self.blocks_only else gpt
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight).mul_(1e-3)
        return model


@dataclass
class Contender:
    """Something that makes steps."""

    label: str
    weights: list[nn.Parameter]
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    step: Callable[[], object] = lambda: None
    before: Callable[[], object] | None = None
    """What a step needs beside gradients; not timed with it."""
    model: nn.Module | None = None
    """Whose inputs are looked at; None where they are not."""

    def side(self, *, clip: bool = False) -> Side:
        """Return what is timed: the step, with ``clip`` after the gradients' norm is limited."""
        return Side(self._clip_and_step if clip else self.step, self.before)

    @property
    def clips_in_step(self) -> bool:
        """Whether the optimizer folds the factor into its step."""
        return any(hasattr(optimizer, "clip_grad_norm") for optimizer in self.optimizers)

    @property
    def count(self) -> int:
        """Number of weights."""
        return sum(weight.numel() for weight in self.weights)

    @property
    def state_bytes(self) -> float:
        """Bytes of state per weight; known once a step is made."""
        states = (tensor for o in self.optimizers for tensor in _tensors(o.state_dict()["state"]))
        return sum(tensor.nbytes for tensor in states) / self.count

    def passes(self) -> tuple[Side, Side] | None:
        """Return a forward pass without inputs gathered, and one with; None if none are."""
        model, forward = self.model, self.before
        if model is None or forward is None:
            return None

        def forget(training: bool) -> None:
            for optimizer in self.optimizers:
                optimizer.forget()  # type: ignore[attr-defined]
            model.train(training)

        return Side(forward, lambda: forget(False)), Side(forward, lambda: forget(True))

    def _clip_and_step(self) -> None:
        for optimizer in self.optimizers:
            if hasattr(optimizer, "clip_grad_norm"):
                optimizer.clip_grad_norm(CLIP)
        if not self.clips_in_step:
            torch.nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.step()


def ours(name: str, shapes: Shapes, device: torch.device, **values: object) -> Contender:
    """Build an optimizer of the registry, as a run with its default parameters would."""
    model = shapes.model(device)
    keys = {"name": name, "lr": LR, "weight_decay": WEIGHT_DECAY, **values}
    optimizer = build_optimizer(model, optimizer_params(keys, "optimizer"))
    label = " ".join([name, *(f"{key}={value}" for key, value in values.items())])
    before = _passes(model, shapes, device) if _looks_at_inputs(model) else None
    loss = torch.tensor(3.0, device=device)
    step: Callable[..., object] = optimizer.step
    return Contender(
        label,
        list(model.parameters()),
        [optimizer],
        lambda: step(lambda: loss),
        before,
        None if before is None else model,
    )


Builder = Callable[[], Contender]


def peers(name: str, shapes: Shapes, device: torch.device) -> list[Builder]:
    """Return the alternatives to an optimizer of the registry that compile nothing; often none."""
    if name.startswith("dap"):
        iterations: tuple[bool, ...] = (False,) if name.endswith("accel") else (True, False)
        return [_iterated(shapes, device, accelerated=how) for how in iterations]
    if name in {"muon", "muon-torch"}:
        if device.type == "cpu":
            return [lambda: per_matrix(shapes, device)]
        return [_muon(shapes, device)]
    if name not in _PUBLIC:
        return []
    cls, keys, has_fused = _PUBLIC[name]
    forms: list[tuple[str, dict[str, bool]]] = [("foreach", {"foreach": True})]
    if has_fused:
        forms.append(("fused", {"fused": True}))
    return [_torch(cls, {**keys, **form}, kind, shapes, device) for kind, form in forms]


def compiled_adamw(shapes: Shapes, device: torch.device) -> Contender:
    """``torch.optim.AdamW`` with its foreach step under torch.compile; the first step compiles.

    On CUDA capturable: else the counts are numbers of the host, and each step compiles anew.
    """
    forms = {"foreach": True, "capturable": device.type == "cuda"}
    return _torch(torch.optim.AdamW, {**_ADAM, **forms}, "compiled", shapes, device)()


_ADAM = {"betas": BETAS, "eps": EPS}
_PUBLIC: dict[str, tuple[Any, dict[str, object], bool]] = {
    "sgd": (torch.optim.SGD, {}, True),
    "sgd-m": (torch.optim.SGD, {"momentum": MOMENTUM}, True),
    "sgd-nesterov": (torch.optim.SGD, {"momentum": MOMENTUM, "nesterov": True}, True),
    "adam": (torch.optim.Adam, _ADAM, True),
    "adamw": (torch.optim.AdamW, _ADAM, True),
    "nadam": (torch.optim.NAdam, _ADAM, False),
    "nadamw": (torch.optim.NAdam, {**_ADAM, "decoupled_weight_decay": True}, False),
}
"""The class, its parameters, and whether torch has a fused form of it."""


def torch_muon(shapes: Shapes, device: torch.device) -> Contender:
    """``torch.optim.Muon`` as shipped on the matrices, fused AdamW on the rest."""
    return _muon(shapes, device)()


def per_matrix(shapes: Shapes, device: torch.device) -> Contender:
    """Muon as one writes it: a loop over the matrices, in fp32; fused AdamW on the rest."""
    model = shapes.model(device)
    split = split_parameters(model)
    matrices = list(split.matrices.values())
    momenta = [torch.zeros_like(matrix) for matrix in matrices]
    rest = _adamw(list(split.rest.values()))

    @torch.no_grad()
    def step() -> None:
        for weight, momentum in zip(matrices, momenta, strict=True):
            assert weight.grad is not None  # noqa: S101 - drawn with the weight
            momentum.lerp_(weight.grad, 1 - MUON_MOMENTUM)
            weight.mul_(1 - LR * WEIGHT_DECAY).add_(_polar(momentum), alpha=-LR)
        rest.step()

    return Contender("per matrix", list(model.parameters()), [rest], step)


def step_flops(name: str, shapes: Shapes, device: torch.device) -> float:
    """Return the FLOPs of the matrix products in one step, by torch's own count.

    Counted on one block with the torch backend, whose products all are torch operators, and
    multiplied by the blocks, since embeddings take none; factorisations do not count.
    """
    single = Shapes.of(shapes.size, shapes.config, 1, blocks_only=True)
    contender = ours(name, single, device, backend="torch")
    for _ in range(2):  # a first step may set up what later ones keep
        if contender.before is not None:
            contender.before()
        with _one_thread(), FlopCounterMode(display=False) as counter:
            contender.step()
    return float(counter.get_total_flops()) * shapes.config.n_layer


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep a step on this thread, the only one whose operators are counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _iterated(shapes: Shapes, device: torch.device, *, accelerated: bool) -> Builder:
    """DAP by an iteration of ours: no public package has it.

    On CUDA an iteration makes all its steps, since looking would wait for the device. It is allowed
    no more of them than its stopping rule takes for these inputs, which is counted before.
    """

    def build() -> Contender:
        contender = ours("dap-ns-nadam", shapes, device, accelerated=accelerated)
        kind = "Chebyshev" if accelerated else "Newton"
        if device.type == "cuda":
            power, iterations = _steps_until_stopped(contender)
            steps = max(power, CHEBYSHEV_STEPS) if accelerated else iterations
            more = {"accelerated": accelerated, "ns_pinv_steps": steps}
            contender = ours("dap-ns-nadam", shapes, device, **more)
            kind = kind if accelerated else f"{kind}, {steps} steps"
        contender.label = f"own {kind}"
        return contender

    return build


def _steps_until_stopped(contender: Contender) -> tuple[int, int]:
    """Return the most steps of the power method and of Newton's iteration, by their own rules."""
    runs: list[int] = []
    power = inverse.largest_eigenvalue

    def largest_eigenvalue(c: Tensor, steps: int) -> Tensor:
        runs.append(0)
        found = power(c, steps)
        runs.append(0)  # the iteration that follows
        return found

    def all_stopped(moving: Tensor) -> bool:
        runs[-1] += 1
        return not bool(moving.any())

    with (
        mock.patch.object(inverse, "largest_eigenvalue", largest_eigenvalue),
        mock.patch.object(inverse, "_all_stopped", all_stopped),
    ):
        if contender.before is not None:
            contender.before()
        contender.step()
    return max(runs[::2]), max(runs[1::2])


def _muon(shapes: Shapes, device: torch.device) -> Builder:
    def build() -> Contender:
        model = shapes.model(device)
        split = split_parameters(model)
        muon = torch.optim.Muon(
            split.matrices.values(), lr=LR, weight_decay=WEIGHT_DECAY, momentum=MUON_MOMENTUM
        )
        rest = _adamw(list(split.rest.values()))
        first: Callable[[], object] = muon.step

        def step() -> None:
            first()
            rest.step()

        return Contender("torch Muon eager", list(model.parameters()), [muon, rest], step)

    return build


def _torch(
    cls: Any, keys: dict[str, Any], kind: str, shapes: Shapes, device: torch.device
) -> Builder:
    def build() -> Contender:
        weights = list(shapes.model(device).parameters())
        optimizer = cls(weights, lr=LR, weight_decay=WEIGHT_DECAY, **keys)
        step = _compiled(optimizer) if kind == "compiled" else optimizer.step
        return Contender(f"torch {cls.__name__} {kind}", weights, [optimizer], step)

    return build


def _adamw(weights: Sequence[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        weights, lr=LR, weight_decay=WEIGHT_DECAY, betas=BETAS, eps=EPS, fused=True
    )


def _compiled(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    def step() -> None:
        optimizer.step()

    compiled: Callable[[], object] = torch.compile(step)
    return compiled


def _polar(momentum: Tensor) -> Tensor:
    a, b, c = _JORDAN
    wide = momentum.shape[0] <= momentum.shape[1]
    x: Tensor = momentum if wide else momentum.T
    x = x / (torch.linalg.vector_norm(x) + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


def _looks_at_inputs(model: nn.Module) -> bool:
    return any(module._forward_pre_hooks for module in model.modules())  # noqa: SLF001


def _passes(model: nn.Module, shapes: Shapes, device: torch.device) -> Callable[[], None]:
    """Return a forward pass of the blocks in training mode, on inputs that differ each time."""
    generator = torch.Generator(device).manual_seed(0)
    blocks: Any = model if shapes.blocks_only else model.blocks
    width = shapes.config.n_embd

    def forward() -> None:
        x = torch.randn(shapes.sequences, CONTEXT, width, generator=generator, device=device)
        for block in blocks:
            x = block(x.detach())  # nothing goes backward: let go of what that would need

    return forward


def _tensors(node: object) -> Iterator[Tensor]:
    """Walk through a state."""
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, dict):
        yield from itertools.chain.from_iterable(map(_tensors, node.values()))
    elif isinstance(node, (list, tuple)):
        yield from itertools.chain.from_iterable(map(_tensors, node))
