"""Optimizers by name: parameters, schedules, and the optimizers themselves.

:mod:`trainer.optim.params` and :mod:`trainer.optim.schedule` do without torch, so names exported
here are imported when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.optim.build import build_optimizer
    from trainer.optim.params import OptimizerParams, optimizer_params
    from trainer.optim.schedule import lr_factor

__all__ = ["OptimizerParams", "build_optimizer", "lr_factor", "optimizer_params"]

_HOME = {
    "OptimizerParams": "trainer.optim.params",
    "build_optimizer": "trainer.optim.build",
    "lr_factor": "trainer.optim.schedule",
    "optimizer_params": "trainer.optim.params",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
