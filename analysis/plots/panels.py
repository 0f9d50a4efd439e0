"""Small multiples: a panel for each group, where one plot would hold too many to tell apart.

All panels share the vertical axis. Each has a learning rate axis of its own, of the same number of
decades, so that equal slopes look equal. The best group comes first, and its best value goes
through all panels as a dashed line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 5
WIDTH, HEIGHT = 1.75, 1.45
"""Inches of a panel."""

_CURVE, _REFERENCE = "#0072B2", "#D55E00"
_MARGIN = 0.12
"""Decades beside the outermost rates."""


def draw_panels(curves: Sequence[tuple[str, pd.DataFrame]]) -> tuple[Figure, list[Axes]]:
    """Draw each group's mean over the learning rate; the caller sees to the vertical axis.

    Args:
        curves: name, and rows of :func:`analysis.lr_sensitivity`; at least one of all has a
            mean.

    Returns:
        The figure, and its panels in reading order.
    """
    ranked = sorted(curves, key=lambda curve: (math.isnan(_best(curve[1])), _best(curve[1])))
    figure, panels = new_panels(len(ranked))
    decades = max(math.log10(rows["lr"].max() / rows["lr"].min()) for _, rows in ranked)
    for axes, (name, points) in zip(panels, ranked, strict=True):
        axes.axhline(_best(ranked[0][1]), color=_REFERENCE, linewidth=0.9, linestyle=(0, (4, 3)))
        _draw(axes, name, points)
        _scale(axes, points["lr"], decades)
    return figure, panels


def new_panels(count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels with one vertical axis, in reading order."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH * columns + 0.5, HEIGHT * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten().tolist()
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def _best(points: pd.DataFrame) -> float:
    """Return the least mean; NaN where no run came through."""
    return float(points["mean"].astype("float64").min())


def _draw(axes: Axes, name: str, points: pd.DataFrame) -> None:
    best = _best(points)
    said = "none completed" if math.isnan(best) else f"{best:.3f}"
    axes.set_title(f"{name}: {said}", fontsize=7.5, pad=3)
    shown = points[points["mean"].notna()]
    if len(shown):
        lr, mean = shown["lr"].to_numpy(), shown["mean"].to_numpy()
        spread = np.array([mean - shown["min"].to_numpy(), shown["max"].to_numpy() - mean])
        bars = spread if (spread > 0).any() else None
        axes.errorbar(
            lr, mean, yerr=bars, color=_CURVE, marker="o", markersize=3, linewidth=1.3, capsize=2
        )
        at = int(np.argmin(mean))
        axes.plot(lr[at], mean[at], "o", markersize=8, markerfacecolor="none", color=_CURVE)
    for lr in points["lr"][(points["n"] == 0) & (points["diverged"] > 0)]:
        axes.plot(
            lr, 0.94, "X", transform=axes.get_xaxis_transform(), color=_REFERENCE, markersize=5
        )


def _scale(axes: Axes, rates: pd.Series, decades: float) -> None:
    """Put the rates in the middle of so many decades; name the outermost and the middle."""
    axes.set_xscale("log")
    named = sorted(set(rates))
    middle = math.log10(named[0] * named[-1]) / 2
    half = decades / 2 + _MARGIN
    axes.set_xlim(10 ** (middle - half), 10 ** (middle + half))
    ticks = named if len(named) <= 2 else [named[0], named[len(named) // 2], named[-1]]
    axes.set_xticks(ticks, labels=[f"{rate:g}" for rate in ticks])
    axes.minorticks_off()
    axes.tick_params(labelsize=6.5)
