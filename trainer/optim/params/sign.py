"""sign-gd, sign-gd-nonlmo and lion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trainer.optim.params.base import OptimizerParams, fractions


@dataclass(frozen=True)
class SignParams(OptimizerParams):
    """Steepest descent in the largest entry's norm: all weights move equally far."""

    NAMES: ClassVar[tuple[str, ...]] = ("sign-gd", "sign-gd-nonlmo")
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    momentum: float = 0.95
    """Decay of the sum of gradients whose sign is taken; in [0, 1)."""
    nesterov: bool = False
    """Look one step ahead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "momentum")


@dataclass(frozen=True)
class LionParams(OptimizerParams):
    """The sign of a momentum that is kept longer than it is used (arXiv 2302.06675)."""

    NAMES: ClassVar[tuple[str, ...]] = ("lion",)
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    betas: tuple[float, float] = (0.95, 0.98)
    """Share of the average in the momentum whose sign is taken, and the average's decay; each in
    [0, 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "betas")
