"""What every optimizer can be told, and how values are refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from rundir.errors import require, unknown
from trainer.optim.params.rules import NORMALIZED_DECAY, WIDTH_POWERS, GroupRule
from trainer.optim.schedule import parse_schedule


@dataclass(frozen=True)
class OptimizerParams:
    """What every optimizer has."""

    NAMES: ClassVar[tuple[str, ...]] = ()
    """The names of the registry that this class describes."""
    KERNELS: ClassVar[tuple[str, ...]] = ()
    """Those of them that have a Triton kernel."""
    NEEDS_INPUTS: ClassVar[bool] = False
    """Whether only a linear layer's weight can be a matrix, since its inputs are looked at."""

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
    groups: tuple[GroupRule, ...] = ()
    """Parameters with a learning rate or weight decay of their own. Without a rule every parameter
    decays, embeddings, norms and biases too."""
    mup_base_n_embd: int | None = None
    """The model width that ``lr`` was tuned at. Learning rates follow the model's own width from
    there as muP says, see :data:`trainer.optim.params.rules.WIDTH_POWERS`; lr * weight_decay
    stays, but of adam and nadam weight_decay. null leaves them as they are."""

    def __post_init__(self) -> None:
        if self.name not in self.NAMES:
            raise unknown("optimizer", self.name, self.NAMES)
        not_negative(self, "lr", "weight_decay")
        fraction = self.warm_up_fraction
        require(0 <= fraction <= 1, "warm_up_fraction", fraction, "in [0, 1]")
        parse_schedule(self.lr_schedule)
        has_kernel = self.name in self.KERNELS
        choices = f"auto or torch: {self.name} has no Triton kernel"
        require(has_kernel or self.backend != "triton", "backend", self.backend, choices)
        base = self.mup_base_n_embd
        require(base is None or base >= 1, "mup_base_n_embd", base, "at least 1, or null")
        no_rule = f"null: for {self.name} no rule is known"
        require(base is None or self.width_powers is not None, "mup_base_n_embd", base, no_rule)

    @property
    def width_powers(self) -> tuple[int, int, int] | None:
        """How learning rates follow the model's width; None where no rule is known."""
        return WIDTH_POWERS.get(self.name)

    @property
    def normalizes_decay(self) -> bool:
        """Whether the size of weight_decay * W drops out of the step."""
        return self.name in NORMALIZED_DECAY


def not_negative(params: OptimizerParams, *names: str) -> None:
    """Refuse fields that are not finite numbers of at least 0."""
    for name in names:
        value = getattr(params, name)
        require(math.isfinite(value) and value >= 0, name, value, "a finite number, at least 0")


def positive(params: OptimizerParams, *names: str) -> None:
    """Refuse fields that are not finite numbers above 0."""
    for name in names:
        value = getattr(params, name)
        require(math.isfinite(value) and value > 0, name, value, "a finite number above 0")


def fractions(params: OptimizerParams, *names: str) -> None:
    """Refuse fields that are not, or do not hold, numbers in [0, 1)."""
    for name in names:
        value = getattr(params, name)
        several = isinstance(value, tuple)
        fits = all(0 <= part < 1 for part in (value if several else (value,)))
        require(fits, name, list(value) if several else value, "in [0, 1)")
