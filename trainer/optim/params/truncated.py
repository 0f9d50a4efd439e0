"""momo, momo-adam and their stars."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from rundir.errors import require
from trainer.optim.params.base import OptimizerParams, fractions, positive


@dataclass(frozen=True)
class TruncatedParams(OptimizerParams):
    """A step that ends where a model of the loss reaches a bound; ``lr`` is its greatest length."""

    lb: float = 0.0
    """A lower bound of the loss, in nats per token. A name in -star starts there, estimates the
    lowest loss in reach, and never goes below."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(math.isfinite(self.lb), "lb", self.lb, "a finite number")

    @property
    def online(self) -> bool:
        """Whether the lowest loss is estimated."""
        return self.name.endswith("-star")


@dataclass(frozen=True)
class MomoParams(TruncatedParams):
    """Gradient descent with momentum and truncated steps (arXiv 2305.07583)."""

    NAMES: ClassVar[tuple[str, ...]] = ("momo", "momo-star")
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    beta: float = 0.9
    """Decay of the averages of gradient and loss; in [0, 1)."""
    bias_correction: bool = False
    """Start the averages at zero, and correct for it, instead of at their first values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "beta")


@dataclass(frozen=True)
class MomoAdamParams(TruncatedParams):
    """Adam with truncated steps (arXiv 2305.07583)."""

    NAMES: ClassVar[tuple[str, ...]] = ("momo-adam", "momo-adam-star")
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    betas: tuple[float, float] = (0.95, 0.95)
    """Decay of the averages of gradient and loss, and of the gradient's square; each in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of the second moment; above 0."""
    divide: bool = True
    """Weight decay divides by 1 + lr * weight_decay after the step; false multiplies by
    1 - lr * weight_decay before it, as adamw does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "betas")
        positive(self, "eps")
