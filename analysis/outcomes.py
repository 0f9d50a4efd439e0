"""What one measure says of every run: a result, a divergence, or nothing yet.

A measure is a summary column (``final.val.loss``, ``best.val.loss``), or ``at_500.val.loss``: the
last value logged up to step 500 by the runs that have come that far.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.collecting.summary import higher_is_better
from analysis.lookup import find_column
from analysis.settings import Settings, settings_of
from analysis.tables import floats, history, load_runs, with_settings
from rundir.errors import UserError

_AT_STEP = re.compile(r"at_(\d+)\.([^.]+)\.(.+)")


@dataclass(frozen=True)
class Outcomes:
    """The runs of a selection, one position a run in everything below."""

    table: pd.DataFrame
    """Every column of the runs table."""
    settings: Settings
    measure: str
    """Full name of the measure, e.g. ``final.val.loss``."""
    value: pd.Series
    """float64: the result of the runs that have one, else NaN."""
    has_result: pd.Series
    """bool: ended well, or of unknown end, with a finite value."""
    diverged: pd.Series
    """bool: diverged, whatever its last value."""

    @property
    def other(self) -> pd.Series:
        """bool: failed, not finished, or without the metric."""
        rest: pd.Series = ~self.has_result & ~self.diverged
        return rest

    @property
    def lower(self) -> bool:
        """Say whether lower values of the measure are better."""
        return not higher_is_better(self.measure)


def outcomes(measure: str, sweep: str | None, store: Path | str) -> Outcomes:
    """Read the runs and what the measure says of each.

    Raises:
        UserError: no store, an unknown sweep or measure, or a measure that is no number.
    """
    table = load_runs(sweep, store)
    settings = settings_of(table)
    name, column = measured(measure, table, settings, sweep, store)
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        raise UserError(f"metric = {measure}; must be a column of numbers")
    values = floats(column)
    diverged = table["diverged"].fillna(value=False).astype(bool)
    finished = table["state"].isna() | (table["state"] == "completed").fillna(value=False)
    usable = finished.astype(bool) & ~diverged & np.isfinite(values)
    return Outcomes(table, settings, name, values.where(usable), usable, diverged)


def measured(
    measure: str, table: pd.DataFrame, settings: Settings, sweep: str | None, store: Path | str
) -> tuple[str, pd.Series]:
    """Return the full name of a measure and its column.

    Raises:
        UserError: the runs have no such column, or no such metric.
    """
    match = _AT_STEP.fullmatch(measure)
    if match is not None:
        step, stream, metric = match.groups()
        return measure, at_step(table, int(step), stream, metric, sweep, store)
    wide = with_settings(table, settings)
    everything = pd.concat([wide, table[[n for n in table.columns if n not in wide]]], axis=1)
    name = find_column(measure, everything)
    return name, everything[name]


def at_step(
    table: pd.DataFrame, step: int, stream: str, metric: str, sweep: str | None, store: Path | str
) -> pd.Series:
    """Return, for each row, the last value of a metric up to a step.

    Null where the run has not come that far or logged none by then.

    Raises:
        UserError: an unknown stream or metric.
    """
    curves = history(stream, sweep, metric, store=store)
    known = curves[(curves["step"] <= step).astype(bool) & curves[metric].notna()]
    last = known.drop_duplicates("run", keep="last")
    by_run = pd.Series(last[metric].array, index=last["run"].astype(str))
    reached = (table["steps"] >= step).fillna(value=False).astype(bool)
    values: pd.Series = by_run.reindex(table["run"].astype(str)).set_axis(table.index)
    shown: pd.Series = values.where(reached)
    return shown
