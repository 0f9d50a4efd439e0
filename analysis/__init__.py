"""Run directories → Parquet store → tables, comparisons and plots. Needs neither torch nor Hydra.

from analysis import best, diff, history, lr_sensitivity, runs

python -m analysis collect     brings store/ up to date; the tables read only that
"""

from __future__ import annotations

from analysis.tables import best, diff, history, lr_sensitivity, runs

__all__ = ["best", "diff", "history", "lr_sensitivity", "runs"]
