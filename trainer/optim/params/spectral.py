"""scion, muon, muon-momo, muonmax-momo, muon-torch and normuon."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from rundir.errors import require
from trainer.optim.params.base import OptimizerParams, fractions, not_negative, positive


@dataclass(frozen=True)
class SpectralParams(OptimizerParams):
    """Matrices move by the polar factor of their momentum."""

    momentum: float = 0.95
    """Decay of the average of the gradient; in [0, 1)."""
    muon_lr: float | None = None
    """Learning rate of the matrices; null takes lr * muon_lr_ratio."""
    muon_lr_ratio: float | None = None
    """Learning rate of the matrices in units of lr; null is 1. Not together with muon_lr."""
    polar_method: Literal["polar_express", "jordan", "svd"] = "polar_express"
    """The polynomials that approximate the polar factor; svd takes it exactly and slowly."""
    ns_steps: int = 5
    """How many of them, each three matrix products; at least 1. svd needs none."""

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
    def polar(self) -> str:
        """The method by the name that :func:`trainer.optim.batches.polar_factors` has for it."""
        return self.polar_method.replace("_", "-")

    @property
    def matrix_scale(self) -> float:
        """Learning rate of the matrices in units of lr."""
        if self.muon_lr is not None:
            return self.muon_lr / self.lr if self.lr else 0.0
        return 1.0 if self.muon_lr_ratio is None else self.muon_lr_ratio


@dataclass(frozen=True)
class ScionParams(SpectralParams):
    """Steepest descent in a non-Euclidean norm (arXiv 2510.09827): matrices in the spectral norm.

    Everything else moves by the sign of its momentum.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("scion",)
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    gptopt_compat: bool = False
    """Divide each Polar Express polynomial by 1.01 once more, as GPT-opt does."""

    @property
    def spectral_scale(self) -> float:
        """What the matrices' direction and dual norm are multiplied by."""
        return self.matrix_scale


@dataclass(frozen=True)
class MuonParams(ScionParams):
    """The same (Jordan et al. 2024), but everything that is no matrix moves by Adam's direction."""

    NAMES: ClassVar[tuple[str, ...]] = ("muon",)
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    betas: tuple[float, float] = (0.95, 0.95)
    """Of that Adam; each in [0, 1)."""
    eps: float = 1e-8
    """Of that Adam; above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "betas")
        positive(self, "eps")


@dataclass(frozen=True)
class MuonMomoParams(MuonParams):
    """Steepest descent whose step ends where a model of the loss reaches a lower bound."""

    NAMES: ClassVar[tuple[str, ...]] = ("muon-momo",)
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    truncate_loss: float | None = 3.2
    """A lower bound of the loss, in nats per token; null does not truncate. Where the loss falls
    below it, the step is 0: 3.2 suits GPT-2's tokens, and no bytes."""
    lmo: bool = True
    """Step as far as the learning rate says; false multiplies by the momentum's dual norm."""
    prod_norm: Literal["linf", "l2", "hybrid"] = "linf"
    """How the norms of single weights make that of all; hybrid is l2, with linf over matrices."""
    rest_norm: Literal["linf", "adam_inf", "adam_2"] = "linf"
    """Norm of everything that is no matrix: its sign, or Adam's direction."""
    nuc_approx: Literal["exact", "frobenius", "last"] = "exact"
    """What the dual norm of a matrix is: its nuclear norm, a Frobenius norm, or the nuclear norm at
    the step before. exact costs nothing more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.truncate_loss is None:
            return
        finite = math.isfinite(self.truncate_loss)
        require(finite, "truncate_loss", self.truncate_loss, "a finite number or null")
        one = f"[{self.momentum}, ...] as momentum: the step is truncated"
        fits = self.rest_norm == "linf" or self.betas[0] == self.momentum
        require(fits, "betas", list(self.betas), one)

    @property
    def spectral_scale(self) -> float:
        """Without lmo the dual norm multiplies the step, so that the scale enters it twice."""
        return self.matrix_scale if self.lmo else math.sqrt(self.matrix_scale)


@dataclass(frozen=True)
class MuonMaxMomoParams(MuonMomoParams):
    """The same in another norm, and not as a linear minimization oracle."""

    NAMES: ClassVar[tuple[str, ...]] = ("muonmax-momo",)
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    lmo: bool = False
    """As in :class:`MuonMomoParams`, as all below; false by default."""
    prod_norm: Literal["linf", "l2", "hybrid"] = "hybrid"
    """hybrid by default."""
    rest_norm: Literal["linf", "adam_inf", "adam_2"] = "adam_2"
    """adam_2 by default."""


@dataclass(frozen=True)
class MuonTorchParams(SpectralParams):
    """Muon as in torch.optim.Muon, and AdamW for everything that is no matrix."""

    NAMES: ClassVar[tuple[str, ...]] = ("muon-torch",)
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    polar_method: Literal["polar_express", "jordan", "svd"] = "jordan"
    """As above; jordan by default, which is torch's."""
    nesterov: bool = True
    """Look one step ahead in the momentum."""
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original"
    """Multiplies a matrix's learning rate by max(1, rows / columns)^1/2, or by
    0.2 max(rows, columns)^1/2, with which updates are as large as AdamW's."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of that AdamW; each in [0, 1)."""
    eps: float = 1e-8
    """Of that AdamW; above 0."""

    def __post_init__(self) -> None:
        base, rule = self.mup_base_n_embd, "null: no rule is known for match_rms_adamw"
        require(base is None or self.width_powers is not None, "mup_base_n_embd", base, rule)
        super().__post_init__()
        fractions(self, "betas")
        positive(self, "eps")

    @property
    def width_powers(self) -> tuple[int, int, int] | None:
        """As Muon's where the rate goes by a matrix's shape, not by its size."""
        return super().width_powers if self.adjust_lr_fn == "original" else None


@dataclass(frozen=True)
class NorMuonParams(SpectralParams):
    """Muon whose updates have rows of one size over time (arXiv 2510.05491), and AdamW."""

    NAMES: ClassVar[tuple[str, ...]] = ("normuon",)
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    polar_method: Literal["polar_express", "jordan", "svd"] = "jordan"
    """As above; jordan by default, which is the paper's."""
    nesterov: bool = True
    """Look one step ahead in the momentum, as the authors' code does; the paper does not."""
    beta2: float = 0.95
    """Decay of the average of each row's mean square; in [0, 1)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of the AdamW on everything that is no matrix; each in [0, 1)."""
    eps: float = 1e-8
    """Added to the roots of both second moments; above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "beta2", "betas")
        positive(self, "eps")
