"""scion and muon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rundir.errors import require
from trainer.optim.params.base import OptimizerParams, fractions, not_negative


@dataclass(frozen=True)
class ScionParams(OptimizerParams):
    """Steepest descent in a non-Euclidean norm (arXiv 2510.09827): matrices in the spectral norm.

    Everything else moves by the sign of its momentum.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("scion",)

    momentum: float = 0.95
    """Decay of the average of the gradient; in [0, 1)."""
    muon_lr: float | None = None
    """Learning rate of the matrices; null takes lr * muon_lr_ratio."""
    muon_lr_ratio: float | None = None
    """Learning rate of the matrices in units of lr; null is 1. Not together with muon_lr."""
    polar: Literal["polar-express", "jordan"] = "polar-express"
    """The polynomials that approximate the polar factor."""
    ns_steps: int = 5
    """How many of them, each three matrix products; at least 1."""
    gptopt_compat: bool = False
    """Divide each Polar Express polynomial by 1.01 once more, as GPT-opt does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "momentum")
        require(self.ns_steps >= 1, "ns_steps", self.ns_steps, "at least 1")
        if self.muon_lr_ratio is not None:
            not_negative(self, "muon_lr_ratio")
        if self.muon_lr is not None:
            alone = "null where muon_lr_ratio is given"
            require(self.muon_lr_ratio is None, "muon_lr", self.muon_lr, alone)
            not_negative(self, "muon_lr")
            require(self.lr > 0 or self.muon_lr == 0, "lr", self.lr, "above 0 where muon_lr is")

    @property
    def matrix_scale(self) -> float:
        """Learning rate of the matrices in units of lr."""
        if self.muon_lr is not None:
            return self.muon_lr / self.lr if self.lr else 0.0
        return 1.0 if self.muon_lr_ratio is None else self.muon_lr_ratio


@dataclass(frozen=True)
class MuonParams(ScionParams):
    """The same (Jordan et al. 2024), but everything that is no matrix moves by Adam's direction."""

    NAMES: ClassVar[tuple[str, ...]] = ("muon",)

    betas: tuple[float, float] = (0.95, 0.95)
    """Of that Adam; each in [0, 1)."""
    eps: float = 1e-8
    """Of that Adam; at least 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "betas")
        not_negative(self, "eps")
