from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from trainer.optim import params as params_module


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small a second thread costs more than it does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """The formulas in numpy."""
    return _loaded("oracle")


@pytest.fixture(scope="session")
def modern_oracle() -> ModuleType:
    """Those of ademamix, mars, schedule-free-adamw and soap."""
    return _loaded("oracle_modern")


def _loaded(name: str) -> ModuleType:
    """Load a module by its path: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Net(nn.Module):
    """Matrices wide, tall, square and twice the same, vectors, an embedding, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(11, 6)
        self.up = nn.Linear(6, 15, bias=True)
        self.norm = nn.LayerNorm(15)
        self.down = nn.Linear(15, 6, bias=False)
        self.square = nn.Linear(6, 6, bias=False)
        self.again = nn.Linear(6, 15, bias=False)
        self.unused = nn.Linear(15, 6, bias=False)
        self.lm_head = nn.Linear(15, 11, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens)
        x = x + self.down(self.norm(self.up(x)).tanh())
        head: torch.Tensor = self.lm_head(self.again(self.square(x)))
        return head


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def small(name: str, **values: object) -> params_module.OptimizerParams:
    return params_module.optimizer_params({"name": name, "lr": 0.03, **values}, "")
