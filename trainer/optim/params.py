"""What an optimizer can be told: one dataclass per family, checked, without torch.

Every key of an ``optimizer_params`` mapping is a field here; its meaning, unit and default stand
beneath it. The formulas that the fields appear in are in the module of the family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rundir.errors import UserError, require, unknown
from trainer.fields import from_mapping
from trainer.optim.schedule import parse_schedule


@dataclass(frozen=True)
class OptimizerParams:
    """What every optimizer has."""

    NAMES: ClassVar[tuple[str, ...]] = ()
    """The names of the registry that this class describes."""
    KERNELS: ClassVar[tuple[str, ...]] = ()
    """Those of them that have a Triton kernel."""

    name: str
    """One of the registry's names."""
    lr: float = 1e-3
    """Learning rate before the schedule's factor; at least 0."""
    weight_decay: float = 0.0
    """Decoupled: a step multiplies the weights by 1 - lr * weight_decay, the momo family divides
    by 1 + lr * weight_decay (sgd, adam and nadam add weight_decay * W to the gradient instead); at
    least 0."""
    lr_schedule: str = "constant-linear"
    """A name that :func:`trainer.optim.lr_factor` lists."""
    warm_up_fraction: float = 0.4
    """Part of the run before the decay: flat in constant-linear, rising elsewhere; in [0, 1]."""
    backend: Literal["auto", "torch", "triton"] = "auto"
    """auto takes the Triton kernel where there is one and the weights are on a CUDA device."""

    def __post_init__(self) -> None:
        if self.name not in self.NAMES:
            raise unknown("optimizer", self.name, self.NAMES)
        _not_negative(self, "lr", "weight_decay")
        fraction = self.warm_up_fraction
        require(0 <= fraction <= 1, "warm_up_fraction", fraction, "in [0, 1]")
        parse_schedule(self.lr_schedule)
        has_kernel = self.name in self.KERNELS
        choices = f"auto or torch: {self.name} has no Triton kernel"
        require(has_kernel or self.backend != "triton", "backend", self.backend, choices)


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
        _fractions(self, "momentum")
        if self.dampening != "momentum":
            require(0 <= self.dampening <= 1, "dampening", self.dampening, "in [0, 1] or momentum")
        if self.name == "sgd-nesterov":
            require(self.momentum > 0, "momentum", self.momentum, "in (0, 1) for sgd-nesterov")
            require(self.dampening == 0, "dampening", self.dampening, "0 for sgd-nesterov")


@dataclass(frozen=True)
class AdamParams(OptimizerParams):
    """Adam (arXiv 1412.6980) and AdamW (arXiv 1711.05101)."""

    NAMES: ClassVar[tuple[str, ...]] = ("adam", "adamw")
    KERNELS: ClassVar[tuple[str, ...]] = ("adamw",)

    betas: tuple[float, float] = (0.95, 0.95)
    """Decay of the averages of the gradient and of its square; each in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of the second moment; at least 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _fractions(self, "betas")
        _not_negative(self, "eps")


@dataclass(frozen=True)
class NAdamParams(OptimizerParams):
    """Adam with Nesterov's momentum (Dozat 2016); nadamw decouples the weight decay."""

    NAMES: ClassVar[tuple[str, ...]] = ("nadam", "nadamw")

    betas: tuple[float, float] = (0.95, 0.95)
    """Decay of the averages of the gradient and of its square; each in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of the second moment; at least 0."""
    momentum_decay: float = 0.0
    """Exponent of Dozat's momentum schedule; 0 keeps half of beta1 from the first step on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _fractions(self, "betas")
        _not_negative(self, "eps", "momentum_decay")


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
        _fractions(self, "momentum")
        require(self.ns_steps >= 1, "ns_steps", self.ns_steps, "at least 1")
        if self.muon_lr_ratio is not None:
            _not_negative(self, "muon_lr_ratio")
        if self.muon_lr is not None:
            alone = "null where muon_lr_ratio is given"
            require(self.muon_lr_ratio is None, "muon_lr", self.muon_lr, alone)
            _not_negative(self, "muon_lr")
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
        _fractions(self, "betas")
        _not_negative(self, "eps")


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

    beta: float = 0.9
    """Decay of the averages of gradient and loss; in [0, 1)."""
    bias_correction: bool = False
    """Start the averages at zero, and correct for it, instead of at their first values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _fractions(self, "beta")


@dataclass(frozen=True)
class MomoAdamParams(TruncatedParams):
    """Adam with truncated steps (arXiv 2305.07583)."""

    NAMES: ClassVar[tuple[str, ...]] = ("momo-adam", "momo-adam-star")

    betas: tuple[float, float] = (0.95, 0.95)
    """Decay of the averages of gradient and loss, and of the gradient's square; each in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of the second moment; at least 0."""
    divide: bool = True
    """Weight decay divides by 1 + lr * weight_decay after the step; false multiplies by
    1 - lr * weight_decay before it, as adamw does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _fractions(self, "betas")
        _not_negative(self, "eps")


@dataclass(frozen=True)
class SignParams(OptimizerParams):
    """Steepest descent in the largest entry's norm: all weights move equally far."""

    NAMES: ClassVar[tuple[str, ...]] = ("sign-gd", "sign-gd-nonlmo")

    momentum: float = 0.95
    """Decay of the sum of gradients whose sign is taken; in [0, 1)."""
    nesterov: bool = False
    """Look one step ahead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _fractions(self, "momentum")


@dataclass(frozen=True)
class LionParams(OptimizerParams):
    """The sign of a momentum that is kept longer than it is used (arXiv 2302.06675)."""

    NAMES: ClassVar[tuple[str, ...]] = ("lion",)

    betas: tuple[float, float] = (0.95, 0.98)
    """Share of the average in the momentum whose sign is taken, and the average's decay; each in
    [0, 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _fractions(self, "betas")


@dataclass(frozen=True)
class DapParams(OptimizerParams):
    """Right-preconditioning by the inverse second moment of each linear layer's input.

    Kin to FOOF (Benzing 2022) and to Newton-Muon (arXiv 2604.01472).
    """

    NAMES: ClassVar[tuple[str, ...]] = ("dap-ns-nadam",)

    dap_beta1: float = 0.95
    """Decay of the average of the gradient; in [0, 1). 0 takes ``momentum`` instead."""
    dap_beta2: float = 0.999
    """Decay of the average of the squared update; in [0, 1). 0 leaves the update as it is."""
    dap_eps: float = 1e-8
    """Added to the root of that average; at least 0."""
    momentum: float = 0.0
    """Heavy-ball momentum, used where dap_beta1 is 0; in [0, 1)."""
    nesterov: bool = True
    """Look one step ahead in either kind of momentum."""
    disable_preconditioning: bool = False
    """Leave the input's second moment out: a baseline."""
    scalar: bool = False
    """Divide by the second moment's largest eigenvalue instead of multiplying by its inverse."""
    accelerated: bool | float = 1e-3
    """How the inverse is taken. A number is added to the diagonal, and the sum inverted by
    Cholesky; false is the pseudo-inverse by the iteration of Soderstrom and Stewart; true is the
    same by a Chebyshev-scaled iteration, with fewer steps."""
    gptopt_compat: bool = False
    """With a number in ``accelerated``: GPT-opt's Chebyshev-scaled iteration instead of Cholesky.
    The two agree to 1e-6 while the largest eigenvalue is at most accelerated / rcond; above, the
    iteration stops early and amplifies the smallest eigenvalues' directions less."""
    ns_pinv_steps: int = 50
    """Most steps of the inverse iteration, and of the power method before it; at least 1."""
    rcond: float = 1e-3
    """Eigenvalues below this part of the largest count as zero in the iterations; in (0, 1)."""
    damping: float = 0.0
    """Added to the diagonal of the second moment, in units of its mean; at least 0."""
    ema_beta: float = 0.0
    """Decay of the average of the second moment over the steps; in [0, 1). 0 takes each step's."""
    xtx_subsample: float | None = None
    """Part of the inputs that the second moment is gathered from, in (0, 1]; null takes all."""
    mb_subsampling: bool = True
    """Take that part as whole micro-batches, the first of every round(1 / part) in a step;
    false takes the first rows of every micro-batch."""
    update_norm: bool = False
    """Scale each matrix's update to a root mean square of 0.2."""
    update_opnorm: bool = False
    """Scale each matrix's update to a largest singular value of 1; goes before update_norm."""
    betas: tuple[float, float] = (0.95, 0.95)
    """Of the AdamW on everything that is no matrix; each in [0, 1)."""
    eps: float = 1e-8
    """Of the same AdamW; at least 0."""
    debug_timing: bool = False
    """Log the milliseconds that each part of a step takes. On CUDA this synchronises."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _fractions(self, "dap_beta1", "dap_beta2", "momentum", "ema_beta", "betas")
        _not_negative(self, "dap_eps", "damping", "eps")
        if not isinstance(self.accelerated, bool):
            _not_negative(self, "accelerated")
        require(0 < self.rcond < 1, "rcond", self.rcond, "in (0, 1)")
        require(self.ns_pinv_steps >= 1, "ns_pinv_steps", self.ns_pinv_steps, "at least 1")
        part = self.xtx_subsample
        require(part is None or 0 < part <= 1, "xtx_subsample", part, "in (0, 1] or null")


@dataclass(frozen=True)
class DapAcceleratedParams(DapParams):
    """DAP with the Chebyshev-scaled inverse."""

    NAMES: ClassVar[tuple[str, ...]] = ("dap-ns-nadam-accel",)

    accelerated: bool | float = True
    """As in :class:`DapParams`; true by default."""


def _not_negative(params: OptimizerParams, *names: str) -> None:
    """Refuse fields that are not finite numbers of at least 0."""
    for name in names:
        value = getattr(params, name)
        require(math.isfinite(value) and value >= 0, name, value, "a finite number, at least 0")


def _fractions(params: OptimizerParams, *names: str) -> None:
    """Refuse fields that are not, or do not hold, numbers in [0, 1)."""
    for name in names:
        value = getattr(params, name)
        several = isinstance(value, tuple)
        fits = all(0 <= part < 1 for part in (value if several else (value,)))
        require(fits, name, list(value) if several else value, "in [0, 1)")


REGISTRY: dict[str, type[OptimizerParams]] = {
    name: cls
    for cls in (
        SgdParams,
        MomentumParams,
        AdamParams,
        NAdamParams,
        ScionParams,
        MuonParams,
        MomoParams,
        MomoAdamParams,
        SignParams,
        LionParams,
        DapParams,
        DapAcceleratedParams,
    )
    for name in cls.NAMES
}
"""Every optimizer's name and the class of its parameters."""


def optimizer_params(values: Mapping[str, Any], where: str) -> OptimizerParams:
    """Build the parameters that ``values["name"]`` asks for.

    Args:
        values: e.g. the ``optimizer.optimizer_params`` node of the resolved config.
        where: dotted name of that node, for messages.

    Raises:
        UserError: there is no such optimizer, it has no such key, or a value is illegal.
    """
    if not isinstance(values, Mapping) or "name" not in values:
        raise UserError(f"{where}.name is missing; must be one of: {', '.join(sorted(REGISTRY))}")
    name = str(values["name"])
    if name not in REGISTRY:
        raise unknown("optimizer", name, REGISTRY, f"{where}.name")
    return from_mapping(REGISTRY[name], values, where)
