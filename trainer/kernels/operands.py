"""What a step works on: the tensors of each weight, and the numbers that all share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Rule = Literal[
    "adam",
    "adamw",
    "nadam",
    "nadamw",
    "ademamix",
    "mars",
    "schedule-free",
    "lion",
    "sign",
    "sign-nesterov",
    "momo",
    "momo-adam",
]
"""The elementwise steps; the modules of trainer.optim have their formulas."""


class Slot(NamedTuple):
    """One weight and what its AdamW step reads and writes; all of one shape."""

    weight: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


@dataclass(frozen=True)
class AdamWScalars:
    """The numbers of one AdamW step whose count is given; none of them is compiled in."""

    lr: float | Tensor
    """A scalar where it is a tensor."""
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step: float | Tensor
    """Counted from 1; infinite where nothing is to be corrected, the moments having started at
    their first values. A tensor holds one number, or one for each weight."""

    @property
    def mean_correction(self) -> float | Tensor:
        """What the first moment's bias is corrected by."""
        return 1 / (1 - self.beta1**self.step)

    @property
    def root_correction(self) -> float | Tensor:
        """What the second moment's root's bias is corrected by."""
        correction: float | Tensor = (1 - self.beta2**self.step) ** -0.5
        return correction

    def of(self, which: Sequence[int]) -> AdamWScalars:
        """Return those of some of the weights."""
        if not isinstance(self.step, Tensor) or not self.step.ndim:
            return self
        return replace(self, step=torch.stack([self.step[i] for i in which]))


@dataclass(frozen=True)
class Operands:
    """A group's weights that have gradients, and what is kept for them: lists of one length."""

    weights: list[Tensor]
    gradients: list[Tensor]
    states: Sequence[list[Tensor]] = ()
    """At most three, each with a tensor of each weight's shape: moments or momenta."""
    steps: Sequence[Tensor] = ()
    """Steps taken, 0-dimensional; empty where the rule does not count."""
    scalars: Sequence[Tensor] = ()
    """The rule's other number for each weight: NAdam's product of its momenta, MoMo's <g, x>,
    what schedule-free's averaged weights have weighed so far."""


@dataclass(frozen=True)
class Numbers:
    """What all weights of a group share; none of it is compiled in. A rule ignores the others'."""

    lr: float | Tensor
    """0-dimensional where it is a tensor: a captured graph reads it at every replay."""
    weight_decay: float = 0.0
    beta1: float = 0.0
    """Decay of the first state; mu of the sign rules."""
    beta2: float = 0.0
    eps: float = 0.0
    momentum_decay: float = 0.0
    """Exponent of NAdam's schedule of momenta."""
    ahead: float = 0.0
    """How much of its change since the step before MARS adds to the gradient."""
    from_zero: bool = True
    """MoMo's averages start there, instead of at their first values."""
    divide: bool = True
    """MoMo's weight decay divides after the step."""
