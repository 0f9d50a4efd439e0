"""soap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rundir.errors import require
from trainer.optim.params.base import OptimizerParams, fractions, positive


@dataclass(frozen=True)
class SoapParams(OptimizerParams):
    """Adam in the eigenbasis of Shampoo's preconditioner (arXiv 2409.11321): matrices.

    Everything else moves by AdamW, with the same learning rate, betas and eps.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("soap",)
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    betas: tuple[float, float] = (0.95, 0.95)
    """Decay of the averages of the gradient and of its square; each in [0, 1)."""
    shampoo_beta: float | None = None
    """Decay of the averages of G G^T and G^T G; in [0, 1); null takes that of the square."""
    eps: float = 1e-8
    """Added to the root of the second moment; above 0."""
    precondition_frequency: int = 10
    """Steps between two refreshes of the eigenbases; at least 1."""
    max_precond_dim: int = 10000
    """Sides of a matrix longer than this keep the basis they have; 0 is AdamW. A side of n costs 8
    n^2 bytes of state per matrix, and a QR of n x n at every refresh."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "betas")
        if self.shampoo_beta is not None:
            fractions(self, "shampoo_beta")
        positive(self, "eps")
        frequency = self.precondition_frequency
        require(frequency >= 1, "precondition_frequency", frequency, "at least 1")
        require(self.max_precond_dim >= 0, "max_precond_dim", self.max_precond_dim, "at least 0")

    @property
    def moment_decay(self) -> float:
        """Decay of the averages of G G^T and G^T G."""
        return self.betas[1] if self.shampoo_beta is None else self.shampoo_beta
