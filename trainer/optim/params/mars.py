"""mars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainer.optim.params.base import OptimizerParams, fractions, not_negative, positive


@dataclass(frozen=True)
class MarsParams(OptimizerParams):
    """AdamW on gradients whose variance is reduced by the step's before (arXiv 2411.10438)."""

    NAMES: ClassVar[tuple[str, ...]] = ("mars",)
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    betas: tuple[float, float] = (0.95, 0.99)
    """Decay of the averages of the corrected gradient and of its square; each in [0, 1)."""
    gamma: float = 0.025
    """Part of the correction that is made; 0 makes none; at least 0."""
    eps: float = 1e-8
    """Added to the root of the second moment; above 0."""
    optimize_1d: bool = False
    """Whether weights of fewer than two dimensions, such as biases and norms, move by MARS too;
    false moves them by AdamW."""
    betas_1d: tuple[float, float] = (0.9, 0.95)
    """Of that AdamW; each in [0, 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "betas", "betas_1d")
        not_negative(self, "gamma")
        positive(self, "eps")
