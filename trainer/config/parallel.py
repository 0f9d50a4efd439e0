"""Which optimizers can train a model that no rank holds whole."""

from __future__ import annotations

from rundir.errors import IllegalValue

ELEMENTWISE = frozenset(
    {
        "sgd",
        "sgd-m",
        "sgd-nesterov",
        "adam",
        "adamw",
        "nadam",
        "nadamw",
        "lion",
        "sign-gd",
        "ademamix",
        "schedule-free-adamw",
    }
)
"""Those whose step treats every number by itself. The others look at whole matrices, at the norm of
a weight, or at sums over all of them, of which a rank has only its part."""


def refuse_whole_weights(optimizer: str) -> None:
    """Refuse an optimizer that can't work on parts of weights.

    Raises:
        IllegalValue: it is none of ELEMENTWISE.
    """
    if optimizer not in ELEMENTWISE:
        must = (
            f"ddp for {optimizer}, which needs whole weights; "
            f"fsdp trains with {', '.join(sorted(ELEMENTWISE))}"
        )
        raise IllegalValue("training.training_params.parallel", "fsdp", must)
