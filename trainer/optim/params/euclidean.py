"""sgd, sgd-m, sgd-nesterov, adam, adamw, nadam and nadamw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rundir.errors import require
from trainer.optim.params.base import OptimizerParams, fractions, not_negative, positive


@dataclass(frozen=True)
class SgdParams(OptimizerParams):
    """Gradient descent without memory."""

    NAMES: ClassVar[tuple[str, ...]] = ("sgd",)


@dataclass(frozen=True)
class MomentumParams(OptimizerParams):
    """Gradient descent with heavy-ball momentum, or with Nesterov's."""

    NAMES: ClassVar[tuple[str, ...]] = ("sgd-m", "sgd-nesterov")

    momentum: float = 0.9
    """Decay of the sum of gradients; in [0, 1)."""
    dampening: float | Literal["momentum"] = 0.0
    """A gradient enters that sum times 1 - dampening; ``momentum`` makes it an exponential
    average. 0 for sgd-nesterov."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "momentum")
        if self.dampening != "momentum":
            require(0 <= self.dampening <= 1, "dampening", self.dampening, "in [0, 1] or momentum")
        if self.name == "sgd-nesterov":
            require(self.momentum > 0, "momentum", self.momentum, "in (0, 1) for sgd-nesterov")
            require(self.dampening == 0, "dampening", self.dampening, "0 for sgd-nesterov")


@dataclass(frozen=True)
class AdamParams(OptimizerParams):
    """Adam (arXiv 1412.6980) and AdamW (arXiv 1711.05101)."""

    NAMES: ClassVar[tuple[str, ...]] = ("adam", "adamw")
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    betas: tuple[float, float] = (0.95, 0.95)
    """Decay of the averages of the gradient and of its square; each in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of the second moment; above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "betas")
        positive(self, "eps")


@dataclass(frozen=True)
class NAdamParams(OptimizerParams):
    """Adam with Nesterov's momentum (Dozat 2016)."""

    NAMES: ClassVar[tuple[str, ...]] = ("nadam",)
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    betas: tuple[float, float] = (0.95, 0.95)
    """Decay of the averages of the gradient and of its square; each in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of the second moment; above 0."""
    momentum_decay: float = 0.0
    """Exponent of Dozat's momentum schedule; 0 keeps half of beta1 from the first step on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "betas")
        not_negative(self, "momentum_decay")
        positive(self, "eps")


@dataclass(frozen=True)
class NAdamWParams(NAdamParams):
    """The same with weight decay of its own."""

    NAMES: ClassVar[tuple[str, ...]] = ("nadamw",)
    KERNELS: ClassVar[tuple[str, ...]] = NAMES

    decoupled_weight_decay: bool = True
    """false adds weight_decay * W to the gradient, which is nadam."""

    @property
    def normalizes_decay(self) -> bool:
        """Whether the size of weight_decay * W drops out of the step."""
        return not self.decoupled_weight_decay
