"""What the user asks of some parameters alone, and how learning rates follow a model's width."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from rundir.errors import require

Kind = Literal["matrix", "rest"]


@dataclass(frozen=True)
class GroupRule:
    """Parameters by name, and what they have of their own; of several rules the first counts."""

    match: str
    """A regular expression that is searched for in a parameter's name, e.g. ``wte|lm_head``. A
    tied weight has several names, and one of them is enough."""
    lr_scale: float = 1.0
    """Their learning rate in units of the one they would have; at least 0, where they stay."""
    weight_decay: float | None = None
    """Theirs instead of the optimizer's, at least 0; null is the optimizer's."""
    kind: Kind | None = None
    """What they are to the optimizer; null goes by name and shape. A matrix must have two
    dimensions."""

    def __post_init__(self) -> None:
        require(bool(self.match), "match", self.match, "a part of a parameter's name")
        fault = _fault(self.match)
        require(fault is None, "match", self.match, f"a regular expression: {fault}")
        scale, decay = self.lr_scale, self.weight_decay
        at_least_0 = "a finite number, at least 0"
        require(math.isfinite(scale) and scale >= 0, "lr_scale", scale, at_least_0)
        legal = decay is None or (math.isfinite(decay) and decay >= 0)
        require(legal, "weight_decay", decay, f"{at_least_0}, or null")


def _fault(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return None


NORMALIZED_DECAY = ("adam", "nadam")
"""Names that add weight_decay * W to a gradient whose size then drops out of the step: a lower
learning rate is not to be made up for by a higher decay."""

_ADAM = (1, 1, 0)
_SGD = (0, 1, -1)
_SPECTRAL = (0, 1, 0)

WIDTH_POWERS: dict[str, tuple[int, int, int]] = {
    **dict.fromkeys(("adam", "adamw", "nadam", "nadamw", "momo-adam", "momo-adam-star"), _ADAM),
    **dict.fromkeys(("ademamix", "mars", "schedule-free-adamw", "sign-gd", "lion"), _ADAM),
    **dict.fromkeys(("sgd", "sgd-m", "sgd-nesterov", "momo", "momo-star"), _SGD),
    **dict.fromkeys(("muon", "scion", "muon-momo", "muon-torch"), _SPECTRAL),
}
"""The powers of base / width that the learning rates of matrices, of the output layer's weight and
of the rest are multiplied by under muP (Tensor Programs V, arXiv 2203.03466, Table 3: for a model
without multipliers).

==========  ========  ======  ====  ==========================================================
like        matrices  output  rest  why
==========  ========  ======  ====  ==========================================================
Adam        1         1       0     1 / fan_in; signs are Adam without averages, so they count
                                    as it
SGD         0         1       -1    1 / fan_in of the output, fan_out of the rest: the width
spectral    0         1       0     an update of fixed spectral norm changes features as much
                                    at any width (arXiv 2310.17813); all else is Adam's or
                                    signs
==========  ========  ======  ====  ==========================================================

muon-torch counts as spectral with ``adjust_lr_fn: original`` alone, which goes by a matrix's shape.

An output weight that is tied to the embedding is one of the rest: Table 3 has no such weight, and
Table 8, which allows it, wants a multiplier of 1 / fan_in in the model, which
``model.config.enable_mup_with_base_n_embd`` brings.

For a name that is not here no rule is known, and muP is refused."""
