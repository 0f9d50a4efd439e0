"""ademamix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rundir.errors import require
from trainer.optim.params.base import OptimizerParams, fractions, not_negative, positive


@dataclass(frozen=True)
class AdEMAMixParams(OptimizerParams):
    """AdamW with a second, much slower average of the gradient (arXiv 2409.03137)."""

    NAMES: ClassVar[tuple[str, ...]] = ("ademamix",)
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the fast average of the gradient and of the average of its square; each in
    [0, 1)."""
    beta3: float = 0.9999
    """Decay of the slow average of the gradient; in [0, 1)."""
    alpha: float = 5.0
    """Weight of the slow average in the step, that of the fast one being 1; at least 0."""
    alpha_warmup: int | None = None
    """Steps over which alpha rises from 0 in a straight line; null starts with all of it. The
    paper takes the whole run."""
    beta3_warmup: int | None = None
    """Steps over which beta3 rises from the fast average's decay, its half-life in about a straight
    line; null starts with all of it. The paper takes the whole run."""
    eps: float = 1e-8
    """Added to the root of the second moment; above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "betas", "beta3")
        not_negative(self, "alpha")
        positive(self, "eps")
        for name in ("alpha_warmup", "beta3_warmup"):
            steps = getattr(self, name)
            require(steps is None or steps >= 1, name, steps, "at least 1, or null")
