"""Curves of every run of a sweep: a colour a group of settings, the darker the higher the rate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.aggregation import group_labels
from analysis.plots.panels import new_panels
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
from analysis.sensitivity import rateless
from analysis.settings import Settings, describe, settings_of
from analysis.tables import history, load_runs, order, rate_column
from rundir.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LABELS = 10
"""A legend of more runs than this names groups only."""


def loss_curves(
    sweep: str | None = None,
    stream: str = "val",
    metric: str = "loss",
    store: Path | str = "store",
) -> Figure:
    """Plot a metric over steps, one line a run, one colour a group of settings.

    Within a group a darker line has a higher learning rate; the best run of each group is thick.
    A run that diverged ends in a cross at its last finite value. More groups than there are
    colours get a panel each, the best first; the best run of all goes through every panel, dashed.

    Raises:
        UserError: no store, an unknown sweep, stream or metric, or nothing finite to show.
    """
    import matplotlib as mpl

    table = load_runs(sweep, store)
    curves = history(stream, sweep, metric, store=store)
    settings = settings_of(table)
    final = f"final.{stream}.{metric}"
    if not np.isfinite(curves[metric].astype("float64")).any():
        raise UserError(f"metric = {stream}.{metric}; must have finite values; no run has any")
    names = list(dict.fromkeys(labels_of(settings.columns, rateless(settings))))
    with mpl.rc_context(STYLE):
        if len(names) > len(OKABE_ITO):
            return _run_panels(table, settings, curves, metric, final)
        figure, axes = new_figure()
        drawn = _draw_runs(axes, table, settings, curves, metric, final)
        axes.set(xlabel="optimizer step", ylabel=axis_label(f"{stream}.{metric}"))
        axes.margins(x=0.01)
        axes.set_xlim(left=0)
        limit(axes, curves[metric])
        _bring_crosses_into_view(axes)
        add_legend(axes, outside=len(drawn) > 6)
    return figure


def _run_panels(
    table: pd.DataFrame, settings: Settings, curves: pd.DataFrame, metric: str, final: str
) -> Figure:
    labels = labels_of(settings.columns, rateless(settings))
    ranked = _ranked(table, final)
    order_of = list(dict.fromkeys(labels[i] for i in ranked))
    figure, panels = new_panels(len(order_of))
    best = curves[(curves["run"] == table["run"].iloc[ranked[0]]).to_numpy()]
    for axes, name in zip(panels, order_of, strict=True):
        mine = np.array([label == name for label in labels])
        group = Settings(settings.columns[mine].reset_index(drop=True), settings.asked)
        rows = table[mine].reset_index(drop=True)
        _draw_runs(axes, rows, group, curves, metric, final)
        axes.plot(
            best["step"],
            best[metric].astype("float64"),
            color="#555555",
            linewidth=0.9,
            linestyle=(0, (4, 3)),
            zorder=1,
        )
        first = next(i for i in ranked if labels[i] == name)
        value = table[final].iloc[first] if final in table else pd.NA
        axes.set_title(f"{name}: {_said(table, first, value)}", fontsize=7.5, pad=3)
        axes.set_xlim(left=0)
        axes.tick_params(labelsize=6.5)
    limit(panels[0], curves[metric])
    for axes in panels:
        _bring_crosses_into_view(axes)
    stream = final.split(".", 1)[1]
    figure.supylabel(axis_label(stream), fontsize=9.5)
    figure.supxlabel(UNITS["step"], fontsize=9.5)
    return figure


def _said(table: pd.DataFrame, i: int, value: Any) -> str:
    """Say how a run ended: its value, or what kept it from one."""
    state = table["state"].iloc[i]
    if bool(table["diverged"].iloc[i]) is True:
        return "diverged"
    if pd.notna(state) and state != "completed":
        return str(state)
    return "" if pd.isna(value) else f"{value:.3f}"


def _draw_runs(
    axes: Axes,
    table: pd.DataFrame,
    settings: Settings,
    curves: pd.DataFrame,
    metric: str,
    final: str,
) -> list[str]:
    """Draw every run that has a finite value; return their ids."""
    groups = rateless(settings)
    labels = labels_of(settings.columns, groups)
    names = list(dict.fromkeys(group_labels(settings.columns, groups)))
    rates = _rates(table)
    lines = {run: rows for run, rows in curves.groupby("run", observed=True) if len(rows)}
    ranked = _ranked(table, final)
    winners = {names.index(labels[i]): i for i in reversed(ranked)}
    named = len(lines) <= MOST_LABELS
    drawn = []
    # The thick lines are drawn last, on top of the others; the legend goes from best to worst.
    for place, i in sorted(enumerate(ranked), key=lambda item: item[1] in winners.values()):
        rows = lines.get(table["run"].iloc[i])
        group = names.index(labels[i])
        if rows is None:
            continue
        values = rows[metric].astype("float64").to_numpy()
        finite = np.isfinite(values)
        if not finite.any():
            continue
        best = winners[group] == i
        shade = _shade(OKABE_ITO[group % len(OKABE_ITO)], rates, i, labels, labels[i])
        steps = rows["step"].to_numpy(dtype=float)[finite]
        label = _run_label(table, settings, i, final) if named or best else None
        (line,) = axes.plot(
            steps,
            values[finite],
            color=OKABE_ITO[group % len(OKABE_ITO)] if best else shade,
            linewidth=2.2 if best else 1.0,
            zorder=3 if best else 2,
            label=label,
        )
        line.set_gid(f"{place:06d}")
        if bool(table["diverged"].iloc[i]) is True:
            axes.plot(steps[-1:], values[finite][-1:], "x", color=shade, markersize=6, zorder=4)
        drawn.append(str(table["run"].iloc[i]))
    return drawn


def _ranked(table: pd.DataFrame, final: str) -> list[int]:
    """Return positions of runs: completed ones by final value, then the others."""
    frame = table.assign(position=range(len(table)))
    if final in frame:
        frame = order(frame, final, descending=False)
    good = (frame["state"].isna() | (frame["state"] == "completed").fillna(value=False)).astype(
        bool
    )
    good &= ~frame["diverged"].fillna(value=False).astype(bool)
    return [*frame[good]["position"].tolist(), *frame[~good]["position"].tolist()]


def _run_label(table: pd.DataFrame, settings: Settings, i: int, final: str) -> str:
    row = settings.columns.iloc[i].to_dict()
    label = describe(row, settings.telling) or str(table["name"].iloc[i])
    said = _said(table, i, table[final].iloc[i] if final in table else pd.NA)
    return f"{label}: {said}" if said else label


def _rates(table: pd.DataFrame) -> pd.Series | None:
    try:
        return rate_column(table).astype("float64").reset_index(drop=True)
    except (UserError, ValueError, TypeError):
        return None


def _shade(color: str, rates: pd.Series | None, i: int, labels: list[str], label: str) -> Any:
    """Mix a colour with white: the group's highest rate keeps 85 % of it, the lowest 35 %."""
    from matplotlib.colors import to_rgb

    share = 0.6
    if rates is not None:
        mine = sorted({rates[j] for j, other in enumerate(labels) if other == label})
        if len(mine) > 1 and rates[i] in mine:
            share = 0.35 + 0.5 * mine.index(rates[i]) / (len(mine) - 1)
    return tuple(1 - share * (1 - channel) for channel in to_rgb(color))


def _bring_crosses_into_view(axes: Axes) -> None:
    """Move the cross of a run that left through the upper edge to where it left."""
    bottom, top = axes.get_ylim()
    for line in axes.lines:
        if line.get_marker() == "x":
            line.set_ydata(np.clip(np.asarray(line.get_ydata(), dtype=float), bottom, top))
            line.set_clip_on(False)
