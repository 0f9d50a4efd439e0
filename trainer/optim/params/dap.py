"""dap-ns-nadam and dap-ns-nadam-accel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rundir.errors import require
from trainer.optim.params.base import OptimizerParams, fractions, not_negative, positive


@dataclass(frozen=True)
class DapParams(OptimizerParams):
    """Right-preconditioning by the inverse second moment of each linear layer's input.

    Kin to FOOF (Benzing 2022) and to Newton-Muon (arXiv 2604.01472).
    """

    NAMES: ClassVar[tuple[str, ...]] = ("dap-ns-nadam",)
    KERNELS: ClassVar[tuple[str, ...]] = ("dap-ns-nadam",)
    NEEDS_INPUTS: ClassVar[bool] = True

    dap_beta1: float = 0.95
    """Decay of the average of the gradient; in [0, 1). 0 takes ``momentum`` instead."""
    dap_beta2: float = 0.999
    """Decay of the average of the squared update; in [0, 1). 0 leaves the update as it is."""
    dap_eps: float = 1e-8
    """Added to the root of that average; above 0."""
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
    iteration stops early and amplifies the smallest eigenvalues' directions less. Where it is less
    than five times accelerated, as in very narrow models, the iteration diverges."""
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
    """Of the same AdamW; above 0."""
    debug_timing: bool = False
    """Log the milliseconds that each part of a step takes. On CUDA this synchronises."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fractions(self, "dap_beta1", "dap_beta2", "momentum", "ema_beta", "betas")
        not_negative(self, "damping")
        positive(self, "dap_eps", "eps")
        if not isinstance(self.accelerated, bool):
            not_negative(self, "accelerated")
        require(0 < self.rcond < 1, "rcond", self.rcond, "in (0, 1)")
        require(self.ns_pinv_steps >= 1, "ns_pinv_steps", self.ns_pinv_steps, "at least 1")
        part = self.xtx_subsample
        require(part is None or 0 < part <= 1, "xtx_subsample", part, "in (0, 1] or null")


@dataclass(frozen=True)
class DapAcceleratedParams(DapParams):
    """DAP with the Chebyshev-scaled inverse."""

    NAMES: ClassVar[tuple[str, ...]] = ("dap-ns-nadam-accel",)
    KERNELS: ClassVar[tuple[str, ...]] = ("dap-ns-nadam-accel",)

    accelerated: bool | float = True
    """As in :class:`DapParams`; true by default."""
