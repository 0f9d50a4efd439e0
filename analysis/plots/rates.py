"""What a summary comes to at each learning rate: a line a group of settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.plots.panels import draw_panels
from analysis.plots.style import (
    OKABE_ITO,
    STYLE,
    UNITS,
    add_legend,
    axis_label,
    labels_of,
    limit,
    new_figure,
)
from analysis.sensitivity import lr_sensitivity
from rundir.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_TICKS = 8
"""Learning rates up to which each has a tick of its own; more would overlap."""


def lr_sensitivity_plot(
    sweep: str | None = None, metric: str = "final.val.loss", store: Path | str = "store"
) -> Figure:
    """Plot a summary over the learning rate (log), one line a group of settings.

    The bar over a point spans its seeds; the best point of each group is ringed and named. A rate
    at which every run diverged is a cross on the upper edge. More groups than there are colours
    get a panel each, the best first.

    Raises:
        UserError: no store, an unknown sweep or metric, or no learning rate.
    """
    import matplotlib as mpl

    points = lr_sensitivity(sweep, metric, store)
    groups = list(points.columns)[: list(points.columns).index("lr")]
    labels = labels_of(points, groups)
    names = list(dict.fromkeys(labels))
    if points["mean"].notna().sum() == 0:
        raise UserError(f"metric = {metric}; must have values of completed runs; none has any")
    with mpl.rc_context(STYLE):
        if len(names) > len(OKABE_ITO):
            return _panels(points, labels, names, metric)
        figure, axes = new_figure()
        axes.set_xscale("log")
        for number, name in enumerate(names):
            rows = points[[label == name for label in labels]]
            _draw_rates(axes, rows, name or "all runs", number)
        axes.set(xlabel=UNITS["lr"], ylabel=axis_label(metric))
        rates = sorted(set(points["lr"]))
        if len(rates) <= _MOST_TICKS:
            axes.set_xticks(rates, labels=[f"{rate:g}" for rate in rates])
            axes.minorticks_off()
        limit(axes, points["mean"], reach=6, room=2.5)
        crossed = points[(points["n"] == 0) & (points["diverged"] > 0)]
        _mark_diverged(axes, crossed, [names.index(labels[i]) for i in crossed.index])
        add_legend(axes, outside=len(names) > 6)
    return figure


def _panels(points: pd.DataFrame, labels: list[str], names: list[str], metric: str) -> Figure:
    figure, panels = draw_panels(
        [(name, points[[label == name for label in labels]]) for name in names]
    )
    limit(panels[0], points["mean"], reach=2, room=2)
    figure.supylabel(axis_label(metric), fontsize=9.5)
    figure.supxlabel(UNITS["lr"], fontsize=9.5)
    return figure


def _draw_rates(axes: Axes, rows: pd.DataFrame, name: str, number: int) -> None:
    color = OKABE_ITO[number % len(OKABE_ITO)]
    marker = "osD^vP*"[number % 7]
    shown = rows[rows["mean"].notna()]
    if not len(shown):
        axes.plot([], [], marker, color=color, label=f"{name}: none completed")
        return
    lr, mean = shown["lr"].to_numpy(), shown["mean"].to_numpy()
    spread = np.array([mean - shown["min"].to_numpy(), shown["max"].to_numpy() - mean])
    at = int(np.argmin(mean))
    label = f"{name}: {mean[at]:.3f} at {lr[at]:g}"
    axes.errorbar(
        lr,
        mean,
        yerr=spread if (spread > 0).any() else None,
        color=color,
        marker=marker,
        markersize=4.5,
        linewidth=1.6,
        capsize=2,
        label=label,
    )
    axes.plot(
        lr[at],
        mean[at],
        "o",
        markersize=11,
        markerfacecolor="none",
        color=color,
        markeredgewidth=1.4,
    )


def _mark_diverged(axes: Axes, rows: pd.DataFrame, numbers: Sequence[int]) -> None:
    """Put a cross near the upper edge at each rate where no run came through."""
    stacked: Counter[float] = Counter()
    for number, lr in zip(numbers, rows["lr"].tolist(), strict=True):
        stacked[lr] += 1
        axes.plot(
            lr,
            1.02 - 0.05 * stacked[lr],
            "X",
            transform=axes.get_xaxis_transform(),
            color=OKABE_ITO[number % len(OKABE_ITO)],
            markersize=7,
            markeredgecolor="white",
        )
    if len(rows):
        axes.plot([], [], "X", color="#555555", markersize=6, label="diverged", gid="~")
