"""Copies of optimizers, which torch's own make without any setting that is in no group."""

from __future__ import annotations

from typing import Any, ClassVar

import torch


class Copied(torch.optim.Optimizer):
    """An optimizer that ``copy.deepcopy`` and pickle copy with all it needs to go on.

    A copy steps copies of the weights: copy the model with it, ``copy.deepcopy((model,
    optimizer))``, or it steps weights of no model. The gradients stay behind, as torch has it.
    """

    _OF_ONE_STEP: ClassVar[tuple[str, ...]] = ("_clip_factor", "_loss")
    """What belongs to gradients, which are not copied."""

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: hooks, and a step that a scheduler has wrapped, it has not."""
        kept: dict[str, Any] = super().__getstate__()
        own = {
            name: value
            for name, value in self.__dict__.items()
            if not name.startswith("_optimizer_")
            and name not in self._OF_ONE_STEP
            and not callable(value)
        }
        return own | kept
