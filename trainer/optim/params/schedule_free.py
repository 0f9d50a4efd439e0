"""schedule-free-adamw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rundir.errors import require
from trainer.optim.params.base import OptimizerParams, fractions, positive


@dataclass(frozen=True)
class ScheduleFreeParams(OptimizerParams):
    """AdamW that averages its weights instead of lowering its learning rate (arXiv 2405.15682)."""

    NAMES: ClassVar[tuple[str, ...]] = ("schedule-free-adamw",)
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    lr_schedule: str = "constant"
    """As in :class:`OptimizerParams`; constant by default: the average takes a decay's place."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Share of the averaged weights in those that gradients are taken at, in (0, 1); and decay of
    the average of the gradient's square, in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of the second moment; above 0."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises in a straight line, ending with all of it; at least
    0. Early steps then weigh less in the average, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "betas")
        beta1 = self.betas[0]
        # At 0 the weights would be z, and the average could not be told from them.
        require(beta1 > 0, "betas[0]", beta1, "in (0, 1)")
        positive(self, "eps")
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "at least 0")
