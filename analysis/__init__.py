"""Run directories → Parquet store → tables, comparisons and plots. Needs neither torch nor Hydra.

from analysis import aggregate, best, compare, diff, history, lr_sensitivity, runs

python -m analysis collect     brings store/ up to date; the tables read only that
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.aggregation import aggregate, compare
    from analysis.rerun import rerun_command
    from analysis.sensitivity import heatmap, importance, lr_sensitivity, parallel
    from analysis.statistics import beats
    from analysis.tables import best, diff, history, runs

__all__ = [
    "aggregate",
    "beats",
    "best",
    "compare",
    "diff",
    "heatmap",
    "history",
    "importance",
    "lr_sensitivity",
    "parallel",
    "rerun_command",
    "runs",
]

MEASURE = "final.val.loss"
"""What runs are compared by unless something else is asked for."""

_MODULES = {
    "aggregation": ("aggregate", "compare"),
    "rerun": ("rerun_command",),
    "sensitivity": ("heatmap", "importance", "lr_sensitivity", "parallel"),
    "statistics": ("beats",),
    "tables": ("best", "diff", "history", "runs"),
}


def __getattr__(name: str) -> Any:
    """Import a table function when it is asked for: collecting does without pandas (PEP 562)."""
    for module, names in _MODULES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"analysis.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
