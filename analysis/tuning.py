"""The runs that count in a paper: of each optimizer those at its best learning rate, all seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis import MEASURE
from analysis.aggregation import group_labels, grouped
from analysis.outcomes import Outcomes, outcomes
from analysis.sensitivity import rateless
from analysis.settings import describe
from analysis.tables import floats, history, rate_column
from rundir.errors import IllegalValue, UserError

AXES = ("step", "tokens", "seconds")
"""What a curve may run over: optimizer steps, tokens seen, seconds of training."""

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tuned:
    """One group of settings at its best learning rate."""

    label: str
    """Its settings, the learning rate last; ``all runs`` where nothing varies."""
    runs: tuple[str, ...]
    """Ids of those with a result: its seeds."""
    mean: float
    """Of the measure, over the runs."""
    diverged: int = 0
    """Seeds that diverged at this rate: the mean is over those that came through."""
    place: int = 0
    """Among all groups of the sweep, those without a result too, in the order of their settings."""


def tuned_groups(
    sweep: str | None = None, metric: str = MEASURE, store: Path | str = "store"
) -> list[Tuned]:
    """Return, for each group of settings, its runs at the learning rate of the best mean.

    The best group comes first; one without any result is left out.

    Args:
        sweep: name of a sweep, or the path of its directory; every run by default.
        metric: a summary column of :func:`analysis.runs`, or ``at_STEP.STREAM.METRIC``.
        store: directory of the store.

    Raises:
        UserError: no store, an unknown sweep or metric, or no run with a result.
    """
    found = outcomes(metric, sweep, store)
    names = rateless(found.settings)
    keys = found.settings.columns[names].assign(lr=_rates(found))
    table = grouped(found, keys)
    table = table[(table["n"] > 0).astype(bool)]
    if table.empty:
        raise UserError(f"metric = {metric}; must have values of completed runs; none has any")
    table = table.sort_values("mean", ascending=found.lower, kind="stable")
    first = table.drop_duplicates(names) if names else table.head(1)
    shown = [*names, "lr"] if len(keys["lr"].dropna().unique()) > 1 else names
    marks = [_mark(row, [*names, "lr"]) for row in keys.to_dict("records")]
    places = group_labels(found.settings.columns, names)
    chosen = []
    for row in first.to_dict("records"):
        mark = _mark(row, [*names, "lr"])
        mine = [mark == other for other in marks] & found.has_result.to_numpy()
        runs = tuple(found.table["run"][mine].tolist())
        label = describe({**row, "lr": float(row["lr"])}, shown) or "all runs"
        place = places.index(describe(row, names))
        chosen.append(Tuned(label, runs, float(row["mean"]), int(row["diverged"]), place))
    return chosen


def tuned_curves(
    groups: list[Tuned],
    stream: str = "val",
    metric: str = "loss",
    x: str = "step",
    store: Path | str = "store",
) -> pd.DataFrame:
    """Return the curve of each group, averaged over its seeds at each step that all have logged.

    Columns:
        group: text, the group's label.
        step: int64; x: double, the mean over seeds of what the curve runs over.
        mean, low, high: double, mean, lowest and highest of the seeds, in the metric's unit.
        n: int64, seeds.

    Args:
        groups: see :func:`tuned_groups`.
        stream: the metric's stream.
        metric: its name.
        x: ``step``, ``tokens`` or ``seconds``; the latter two as the train stream tells them.
        store: directory of the store.

    Raises:
        UserError: no store, an unknown stream or metric, or runs that did not log what x needs.
    """
    if x not in AXES:
        raise IllegalValue("x", x, f"one of: {', '.join(AXES)}")
    label_of = {run: group.label for group in groups for run in group.runs}
    curves = history(stream, metrics=metric, runs=list(label_of), store=store)
    curves = curves[curves[metric].notna()]
    runs = curves["run"].astype(str)
    steps = curves["step"].to_numpy(dtype=float)
    places = steps if x == "step" else _places(runs, steps, x, list(label_of), store)
    values: pd.Series = floats(curves[metric])
    frame = pd.DataFrame(
        {
            "group": runs.map(label_of).to_numpy(),
            "step": steps.astype(np.int64),
            "x": places,
            "value": values.to_numpy(),
        }
    )
    seeds = {group.label: len(group.runs) for group in groups}
    points = frame.groupby(["group", "step"], sort=True).agg(
        x=("x", "mean"),
        mean=("value", "mean"),
        low=("value", "min"),
        high=("value", "max"),
        n=("value", "size"),
    )
    table: pd.DataFrame = points.reset_index()
    whole = table["n"] == table["group"].map(seeds)
    result: pd.DataFrame = table[whole].reset_index(drop=True)
    return result


def _rates(found: Outcomes) -> pd.Series:
    try:
        rates: pd.Series = floats(rate_column(found.table))
    except (UserError, ValueError, TypeError):
        rates = pd.Series(np.nan, index=found.table.index)
    return rates


def _mark(row: Mapping[Any, Any], names: list[str]) -> tuple[str, ...]:
    return tuple("" if pd.isna(row[name]) else str(row[name]) for name in names)


def _places(
    runs: pd.Series, steps: _Floats, x: str, wanted: list[str], store: Path | str
) -> _Floats:
    """Return where each record lies on the axis, by its run's train stream."""
    clock = history("train", runs=wanted, store=store)
    needs = "tokens" if x == "tokens" else "t"
    places = np.full(len(steps), np.nan)
    for run, rows in clock.groupby("run", observed=True, sort=False):
        known = _tokens(rows) if x == "tokens" else elapsed(rows)
        usable = np.isfinite(known)
        mine = (runs == str(run)).to_numpy()
        if usable.any() and mine.any():
            at = rows["step"].to_numpy(dtype=float)[usable]
            places[mine] = np.interp(steps[mine], at, known[usable])
    if len(places) and not np.isfinite(places).any():
        raise UserError(f"x = {x}; must be logged in the train stream as {needs}; no run has it")
    return places


def _tokens(rows: pd.DataFrame) -> _Floats:
    if "tokens" not in rows:
        return np.full(len(rows), np.nan)
    return floats(rows["tokens"]).to_numpy()


def elapsed(rows: pd.DataFrame) -> _Floats:
    """Return seconds of training at each record of one run, from its first record on.

    The time between two attempts does not count. Without clock times (GPT-opt has none) the step
    times are added up; without those it is NaN.

    Args:
        rows: of the train stream, steps ascending, with t and attempt.
    """
    t = floats(rows["t"]).to_numpy()
    if np.isfinite(t).all():
        spent = np.diff(t, prepend=t[:1])
        begun = np.diff(rows["attempt"].to_numpy(dtype=float), prepend=np.nan) != 0
        return np.asarray(np.cumsum(np.where(begun, 0.0, np.maximum(spent, 0.0))))
    if "step_time" in rows:
        return np.asarray(np.nancumsum(floats(rows["step_time"]).to_numpy()))
    return np.full(len(rows), np.nan)
