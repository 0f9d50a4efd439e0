from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

Tensors = dict[str, torch.Tensor]


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
