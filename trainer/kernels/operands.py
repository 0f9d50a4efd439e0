"""What an AdamW step works on: the tensors of each weight, and the numbers that all share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Slot(NamedTuple):
    """One weight and what its step reads and writes; all of one shape."""

    weight: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


@dataclass(frozen=True)
class AdamWScalars:
    """The numbers of one step; none of them is compiled in."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step: int
    """Counted from 1."""

    @property
    def step_size(self) -> float:
        """Learning rate over the first moment's bias correction."""
        return self.lr / (1 - self.beta1**self.step)

    @property
    def root_correction(self) -> float:
        """Reciprocal root of the second moment's bias correction."""
        return 1 / math.sqrt(1 - self.beta2**self.step)
