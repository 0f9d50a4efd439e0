"""Figures fit for a paper: units on the axes, colours that colour-blind readers tell apart.

Figures are made without pyplot, so that nothing global changes and no display is needed. matplotlib
is imported by the first call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.sensitivity import lr_sensitivity, rateless
from analysis.settings import Settings, describe, settings_of
from analysis.style import OKABE_ITO, STYLE, UNITS, add_legend, axis_label, limit, new_figure
from analysis.tables import history, load_runs, order, rate_column
from rundir.errors import UserError, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMS = ("png", "pdf", "svg")
MOST_LABELS = 10
"""A legend of more runs than this names groups only."""

_MOST_TICKS = 8
"""Learning rates up to which each has a tick of its own; more would overlap."""


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
    names = list(dict.fromkeys(_labels(settings.columns, rateless(settings))))
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
    labels = _labels(points, groups)
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


def _run_panels(
    table: pd.DataFrame, settings: Settings, curves: pd.DataFrame, metric: str, final: str
) -> Figure:
    from analysis.panels import new_panels

    labels = _labels(settings.columns, rateless(settings))
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


def _panels(points: pd.DataFrame, labels: list[str], names: list[str], metric: str) -> Figure:
    from analysis.panels import draw_panels

    figure, panels = draw_panels(
        [(name, points[[label == name for label in labels]]) for name in names]
    )
    limit(panels[0], points["mean"], reach=2, room=2)
    figure.supylabel(axis_label(metric), fontsize=9.5)
    figure.supxlabel(UNITS["lr"], fontsize=9.5)
    return figure


def save_plots(
    sweep: str | None, out: Path, store: Path | str = "store", form: str = "png"
) -> list[Path]:
    """Write every figure that the sweep has the metrics for, each under its function's name.

    A sweep with one learning rate has no sensitivity to it; step sizes are shown where an optimizer
    logs them.

    Args:
        sweep: name of a sweep, or the path of its directory; every run by default.
        out: directory, created if needed.
        store: directory of the store.
        form: ``png`` (200 dots an inch), ``pdf`` or ``svg``, both with text as text.

    Raises:
        UserError: as the plots, an unknown form, or ``out`` cannot be written.
    """
    import matplotlib as mpl

    from analysis.tunedplots import schedules, step_sizes, tuned_curves_plot, wall_clock

    require(form in FORMS, "format", form, f"one of: {', '.join(FORMS)}")
    figures = {"loss_curves": loss_curves(sweep, store=store)}
    if len(rate_column(load_runs(sweep, store)).dropna().unique()) > 1:
        figures["lr_sensitivity"] = lr_sensitivity_plot(sweep, store=store)
    more: dict[str, Callable[..., Figure]] = {
        "tuned_curves": tuned_curves_plot,
        "wall_clock": wall_clock,
        "schedules": schedules,
        "step_sizes": step_sizes,
    }
    for name, draw in more.items():
        try:
            figures[name] = draw(sweep, store=store)
        except UserError:
            # The sweep lacks what this figure shows; what all of them need was there for the first.
            continue
    paths = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(STYLE):
            for name, figure in figures.items():
                paths.append(out / f"{name}.{form}")
                figure.savefig(paths[-1], dpi=200)
    except OSError as error:
        raise UserError(f"out = {out}; must be a writable directory; {error.strerror}") from None
    return paths


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
    labels = _labels(settings.columns, groups)
    names = list(dict.fromkeys(labels))
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


def _bring_crosses_into_view(axes: Axes) -> None:
    """Move the cross of a run that left through the upper edge to where it left."""
    bottom, top = axes.get_ylim()
    for line in axes.lines:
        if line.get_marker() == "x":
            line.set_ydata(np.clip(np.asarray(line.get_ydata(), dtype=float), bottom, top))
            line.set_clip_on(False)


def _labels(table: pd.DataFrame, columns: list[str]) -> list[str]:
    """Tell each row by these columns, of which there may be none."""
    # Before version 3, pandas makes no records of rows without columns.
    records = table[columns].to_dict("records") or [{}] * len(table)
    return [describe(row, columns) for row in records]
