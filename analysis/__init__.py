"""Run directories → Parquet store → tables, comparisons and plots. Needs neither torch nor Hydra.

from analysis import aggregate, best, compare, diff, history, lr_sensitivity, runs

python -m analysis collect     brings store/ up to date; the tables read only that
"""

from __future__ import annotations

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
