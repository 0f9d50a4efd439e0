from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]


class AdamWOracle:
    """One weight under AdamW, number by number from the paper's algorithm 2, in fp64."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight.double().clone()
        self.mean = torch.zeros_like(self.weight)
        self.square = torch.zeros_like(self.weight)
        self.steps = 0

    def step(
        self,
        gradient: torch.Tensor,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        self.steps += 1
        g = gradient.double()
        self.mean = betas[0] * self.mean + (1 - betas[0]) * g
        self.square = betas[1] * self.square + (1 - betas[1]) * g**2
        mean_hat = self.mean / (1 - betas[0] ** self.steps)
        square_hat = self.square / (1 - betas[1] ** self.steps)
        direction = mean_hat / (square_hat.sqrt() + eps)
        self.weight = self.weight - lr * (direction + weight_decay * self.weight)


class AdamOracle:
    """adam, adamw, nadam and nadamw in fp64 numpy, from Kingma and Ba, and from Dozat.

    The products of momenta are recomputed from the first step on.
    """

    def __init__(self, name: str, p: SimpleNamespace) -> None:
        self.name, self.p = name, p
        self.t: dict[str, int] = {}
        self.m: dict[str, Array] = {}
        self.v: dict[str, Array] = {}

    def _momentum(self, t: int) -> float:
        psi = self.p.momentum_decay
        return float(self.p.betas[0] * (1 - math.pow(0.96, t * psi) / 2))

    def step(self, x: dict[str, Array], g: dict[str, Array], lr: float) -> None:
        (b1, b2), decay = self.p.betas, self.p.weight_decay
        for key, gradient in g.items():
            t = self.t[key] = self.t.get(key, 0) + 1
            if self.name.endswith("w"):
                x[key] = x[key] * (1 - lr * decay)
            else:
                gradient = gradient + decay * x[key]  # noqa: PLW2901
            self.m[key] = b1 * self.m.get(key, np.zeros_like(gradient)) + (1 - b1) * gradient
            self.v[key] = b2 * self.v.get(key, np.zeros_like(gradient)) + (1 - b2) * gradient**2
            if self.name.startswith("nadam"):
                product = math.prod(self._momentum(i) for i in range(1, t + 1))
                later = self._momentum(t + 1)
                mean = later / (1 - product * later) * self.m[key]
                mean = mean + (1 - self._momentum(t)) / (1 - product) * gradient
            else:
                mean = self.m[key] / (1 - b1**t)
            x[key] = x[key] - lr * mean / (np.sqrt(self.v[key] / (1 - b2**t)) + self.p.eps)


class EachOracle:
    """An oracle of single weights, for all of them."""

    def __init__(self, kind: Any, p: Any) -> None:
        self.kind, self.p = kind, p
        self.of: dict[str, Any] = {}

    def step(self, x: dict[str, Array], g: dict[str, Array], lr: float) -> None:
        for key, gradient in g.items():
            if key not in self.of:
                self.of[key] = self.kind(self.p, x[key])
            x[key] = self.of[key].step(x[key], gradient, lr, self.p.weight_decay)


def other_oracles(name: str) -> ModuleType:
    """The other optimizers' formulas, loaded by their path: tests are no package."""
    path = Path(__file__).parents[1] / "optim" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def oracle_of() -> Any:
    """A function of an optimizer's parameters that returns its oracle."""
    others, modern = other_oracles("oracle"), other_oracles("oracle_modern")
    kinds = {
        "ademamix": modern.AdEMAMix,
        "mars": modern.Mars,
        "schedule-free-adamw": modern.ScheduleFree,
    }

    def oracle(p: Any) -> Any:
        if p.name in {"adam", "adamw", "nadam", "nadamw"}:
            return AdamOracle(p.name, p)
        if p.name in kinds:
            return EachOracle(kinds[p.name], p)
        return (others.Momo if p.name.startswith("momo") else others.Sign)(p.name, p)

    return oracle


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small a second thread costs more than it does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def adamw_oracle() -> type[AdamWOracle]:
    return AdamWOracle
