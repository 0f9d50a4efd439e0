"""Figures of the tuned runs: each group of settings at its best learning rate, over its seeds.

tuned_curves_plot   a metric over steps, tokens or seconds
wall_clock          the same over training time
schedules           the learning rate over steps
step_sizes          the step size that the optimizer chose, where it logs one
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis import MEASURE
from analysis.plots.style import OKABE_ITO, STYLE, UNITS, add_legend, axis_label, limit, new_figure
from analysis.tuning import tuned_curves, tuned_groups
from rundir.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)))
"""A second sign beside the colour, for those who print in grey."""

FAR_APART = 10.0
"""Peaks of schedules that differ by more than this factor go on a log scale."""


def tuned_curves_plot(
    sweep: str | None = None,
    stream: str = "val",
    metric: str = "loss",
    x: str = "step",
    by: str = MEASURE,
    store: Path | str = "store",
) -> Figure:
    """Plot a metric of each group at its best learning rate; the band spans its seeds.

    Args:
        sweep: name of a sweep, or the path of its directory; every run by default.
        stream: the metric's stream.
        metric: its name.
        x: ``step``, ``tokens`` or ``seconds``.
        by: the measure that the learning rate is chosen by.
        store: directory of the store.

    Raises:
        UserError: no store, an unknown sweep, stream or metric, no run with a result, or none that
            logged what x needs.
    """
    return _figure(sweep, stream, metric, x, by, store)


def _figure(
    sweep: str | None,
    stream: str,
    metric: str,
    x: str,
    by: str,
    store: Path | str,
    *,
    is_log: bool = False,
) -> Figure:
    import matplotlib as mpl

    groups = tuned_groups(sweep, by, store)
    shown = groups[: len(OKABE_ITO)]
    # As in the other figures, as long as those have a colour for each group.
    is_shared = max(group.place for group in groups) < len(OKABE_ITO)
    curves = tuned_curves(shown, stream, metric, x, store)
    if not np.isfinite(curves["mean"]).any():
        raise UserError(
            f"metric = {stream}.{metric}; must have finite values; no tuned run has any"
        )
    with mpl.rc_context(STYLE):
        figure, axes = new_figure()
        for number, group in enumerate(shown):
            rows = curves[curves["group"] == group.label]
            if rows.empty:
                continue
            place = group.place if is_shared else number
            color, dash = OKABE_ITO[place], _DASHES[place % len(_DASHES)]
            lost = [f"{group.diverged} diverged"] if group.diverged else []
            notes = [f"n = {len(group.runs)}", *lost] if lost or len(group.runs) > 1 else []
            label = f"{group.label}: {group.mean:.3f}"
            label += f" ({', '.join(notes)})" if notes else ""
            at, mean = rows["x"].to_numpy(), rows["mean"].to_numpy()
            (line,) = axes.plot(at, mean, color=color, linestyle=dash, linewidth=1.6, label=label)
            line.set_gid(f"{number:03d}")
            if len(group.runs) > 1:
                low, high = rows["low"].to_numpy(), rows["high"].to_numpy()
                axes.fill_between(at, low, high, color=color, alpha=0.18, linewidth=0)
        axes.set(xlabel=UNITS[x], ylabel=axis_label(f"{stream}.{metric}"))
        if len(shown) < len(groups):
            axes.set_title(f"the best {len(shown)} of {len(groups)}", fontsize=8.5, loc="left")
        axes.margins(x=0.01)
        axes.set_xlim(left=0)
        if is_log:
            axes.set_yscale("log", nonpositive="mask")
        else:
            limit(axes, curves["mean"])
        add_legend(axes, outside=len(shown) > 4)
    return figure


def wall_clock(
    sweep: str | None = None,
    stream: str = "val",
    metric: str = "loss",
    by: str = MEASURE,
    store: Path | str = "store",
) -> Figure:
    """Plot a metric over seconds of training, of each group at its best learning rate.

    Compares what was run on like machines only: the time is that of the clock.

    Raises:
        UserError: as :func:`tuned_curves_plot`.
    """
    return tuned_curves_plot(sweep, stream, metric, "seconds", by, store)


def schedules(sweep: str | None = None, by: str = MEASURE, store: Path | str = "store") -> Figure:
    """Plot the learning rate over steps, of each group at its best learning rate.

    All of it is in view: from zero, or on a log scale where the peaks are far apart.

    Raises:
        UserError: as :func:`tuned_curves_plot`.
    """
    figure = tuned_curves_plot(sweep, "train", "lr", "step", by, store)
    axes = figure.axes[0]
    rates = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    peaks = [float(np.max(curve[np.isfinite(curve)], initial=0.0)) for curve in rates]
    if min(peaks) > 0 and max(peaks) > FAR_APART * min(peaks):
        axes.set_yscale("log", nonpositive="mask")
        axes.autoscale(axis="y")
    else:
        axes.set_ylim(0, 1.05 * max(peaks) or 1.0)
    return figure


def step_sizes(sweep: str | None = None, by: str = MEASURE, store: Path | str = "store") -> Figure:
    """Plot the step size that the optimizer took, on a log scale.

    Raises:
        UserError: as :func:`tuned_curves_plot`, also where no optimizer logs ``step_size``.
    """
    return _figure(sweep, "train", "step_size", "step", by, store, is_log=True)
