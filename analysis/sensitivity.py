"""How a measure depends on the settings: on the learning rate, on two, and on which most.

Runs that differ only in their seed are averaged. A run that diverged is counted or ranked last, and
never left out unsaid.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.aggregation import grouped, seedless
from analysis.lookup import find_column
from analysis.outcomes import outcomes
from analysis.settings import Settings
from analysis.tables import RATES, floats, rate_column
from rundir.errors import UserError

IMPORTANCE = "main effect: share of the variance of ranks (Kruskal-Wallis eta squared, adjusted)"
"""What :func:`importance` measures; stands in its column ``method``."""

_MOST_LEVELS = 8
"""A setting with more values than this, such as a sampled one, is cut into so many ranges."""
_LOG_RANGE = 10.0
"""A positive setting that spans more than this factor is shown on a log scale."""

_DOUBLE = pd.ArrowDtype(pa.float64())


def lr_sensitivity(
    sweep: str | None = None, metric: str = "final.val.loss", store: Path | str = "store"
) -> pd.DataFrame:
    """Return how a measure depends on the learning rate, one row a group of settings and rate.

    Columns:
        the settings that tell groups apart, e.g. optimizer; seeds are averaged over.
        lr: double.
        n, mean, std, low, high, min, max, diverged, other: as in :func:`analysis.aggregate`; at
            a confidence of 95 %.

    Args:
        sweep: name of a sweep, or the path of its directory; every run by default.
        metric: a summary column of :func:`analysis.runs`, or ``at_STEP.STREAM.METRIC``.
        store: directory of the store.

    Raises:
        UserError: no store, an unknown sweep or metric, or runs without a learning rate.
    """
    found = outcomes(metric, sweep, store)
    rate = floats(rate_column(found.table))
    keys = found.settings.columns[rateless(found.settings)].assign(lr=rate)
    table = grouped(found, keys)
    result: pd.DataFrame = table[table["lr"].notna()].reset_index(drop=True)
    result.attrs = {"metric": found.measure}
    return result


def heatmap(
    x: str | None = None,
    y: str | None = None,
    metric: str = "final.val.loss",
    sweep: str | None = None,
    store: Path | str = "store",
) -> pd.DataFrame:
    """Return a measure over two settings: columns are the values of x, rows those of y.

    A cell is the mean over seeds, and of several other settings the best. NaN: all its runs
    diverged; null: it has no result. ``attrs`` holds ``metric``, ``x``, ``y`` and ``best_over``,
    the settings of which a cell shows the best.

    Args:
        x: a setting, by default the learning rate.
        y: another; by default the first that tells runs apart.
        metric: a summary column of :func:`analysis.runs`, or ``at_STEP.STREAM.METRIC``.
        sweep: name of a sweep, or the path of its directory; every run by default.
        store: directory of the store.

    Raises:
        UserError: no store, an unknown sweep, metric or setting, or fewer than two that vary.
    """
    found = outcomes(metric, sweep, store)
    names = seedless(found.settings)
    columns = found.settings.columns
    across = find_column(x, columns) if x else next(iter([*_rates(names), *names]), None)
    down = find_column(y, columns) if y else next((n for n in names if n != across), None)
    if across is None or down is None or across == down:
        told = ", ".join(names) or "none"
        raise UserError(f"settings = {told}; must be two that vary, for the two sides of a heatmap")
    others = [name for name in names if name not in {across, down}]
    table = grouped(found, columns[[down, across, *others]])
    table = table.sort_values("mean", ascending=found.lower, kind="stable", na_position="last")
    table = table.drop_duplicates([down, across])
    cells = np.where((table["n"] == 0) & (table["diverged"] > 0), np.nan, floats(table["mean"]))
    known = ((table["n"] > 0) | (table["diverged"] > 0)).to_numpy(dtype=bool)
    rows, wide = _axis(table[down]), _axis(table[across])
    grid = np.full((len(rows), len(wide)), np.nan)
    empty = np.ones(grid.shape, bool)
    for value, is_known, row, column in zip(
        cells, known, table[down].tolist(), table[across].tolist(), strict=True
    ):
        at = rows.index(row), wide.index(column)
        grid[at], empty[at] = value, not is_known
    result: pd.DataFrame = pd.DataFrame(
        {
            name: pd.arrays.ArrowExtensionArray(
                pa.array(grid[:, i], mask=empty[:, i], from_pandas=False)
            )
            for i, name in enumerate(wide)
        },
        index=pd.Index(rows, name=down, dtype=object if isinstance(rows[0], str) else None),
    )
    result.columns.name = across
    result.attrs = {"metric": found.measure, "x": across, "y": down, "best_over": others}
    return result


def parallel(
    metric: str = "final.val.loss", sweep: str | None = None, store: Path | str = "store"
) -> pd.DataFrame:
    """Return what parallel coordinates show: one row a run, the best last, so that it lies on top.

    Columns:
        run: text, the id in :func:`analysis.runs`.
        the settings that tell runs apart, seeds too; not what only follows from them.
        the measure under its full name: double, null for a run without a result.
        state: text; diverged: bool.

    ``attrs`` holds ``metric`` and ``scales``: ``linear``, ``log`` or ``category`` by setting.

    Args:
        metric: a summary column of :func:`analysis.runs`, or ``at_STEP.STREAM.METRIC``.
        sweep: name of a sweep, or the path of its directory; every run by default.
        store: directory of the store.

    Raises:
        UserError: no store, or an unknown sweep or metric.
    """
    found = outcomes(metric, sweep, store)
    settings = found.settings.columns[found.settings.telling]
    values = found.value.astype("Float64").astype(_DOUBLE).rename(found.measure)
    ends = found.table[["state"]].assign(diverged=found.diverged.astype("bool[pyarrow]"))
    kept = settings[[name for name in settings if name != found.measure]]
    frame = pd.concat([found.table[["run"]], kept, values, ends], axis=1)
    frame = frame.sort_values(
        found.measure, ascending=not found.lower, kind="stable", na_position="first"
    )
    result: pd.DataFrame = frame.reset_index(drop=True)
    scales = {str(name): _scale(settings[name]) for name in kept}
    result.attrs = {"metric": found.measure, "scales": scales}
    return result


def importance(
    metric: str = "final.val.loss", sweep: str | None = None, store: Path | str = "store"
) -> pd.DataFrame:
    """Return how much of a measure's variation each setting accounts for alone, the most first.

    The runs are ranked by the measure, those that diverged sharing the last rank. Of the variance
    of the ranks, ``explained`` is the share that lies between the setting's values: H / (n - 1) of
    Kruskal and Wallis. ``importance`` is that less what chance would explain,
    (H - k + 1) / (n - k) for k values, and at least 0. Ranks make it robust to a single huge loss.
    It sees main effects only: of two settings that matter only together, neither shows. Settings
    that merely follow from others (Muon has a momentum) are not listed.

    Columns:
        setting: text.
        importance, explained: double between 0 and 1; importance is null where every run has a
            value of its own.
        levels: int64, values told apart; a number with more than 8 is cut into 8 ranges.
        n: int64, runs ranked.
        method: text, the same in every row.

    Args:
        metric: a summary column of :func:`analysis.runs`, or ``at_STEP.STREAM.METRIC``.
        sweep: name of a sweep, or the path of its directory; every run by default.
        store: directory of the store.

    Raises:
        UserError: no store, or an unknown sweep or metric.
    """
    found = outcomes(metric, sweep, store)
    ranked = found.has_result | found.diverged
    worst = np.inf if found.lower else -np.inf
    ranks = found.value.where(~found.diverged, worst)[ranked].rank(ascending=found.lower)
    rows = []
    for name in found.settings.telling:
        levels = _levels(found.settings.columns[name][ranked])
        share, adjusted = _rank_eta_squared(ranks.to_numpy(), levels)
        rows.append((name, adjusted, share, len(np.unique(levels)), len(ranks), IMPORTANCE))
    names = ["setting", "importance", "explained", "levels", "n", "method"]
    kinds = ["string", "double", "double", "int64", "int64", "string"]
    frame = pd.DataFrame(rows, columns=pd.Index(names))
    frame = frame.astype({"importance": "Float64", "explained": "Float64"})
    frame = frame.astype({n: f"{k}[pyarrow]" for n, k in zip(names, kinds, strict=True)})
    frame = frame.sort_values("importance", ascending=False, kind="stable", na_position="last")
    result: pd.DataFrame = frame.reset_index(drop=True)
    result.attrs = {"metric": found.measure, "method": IMPORTANCE}
    return result


def rateless(settings: Settings) -> list[str]:
    """Return the telling settings that are neither learning rate nor seed: what a curve is for."""
    return [name for name in seedless(settings) if name.rsplit(".", 1)[-1] not in RATES]


def _rates(names: list[str]) -> list[str]:
    return [name for name in names if name.rsplit(".", 1)[-1] in RATES]


def _axis(column: pd.Series) -> list[Any]:
    """Return the values that occur, ascending; an absent one comes last."""
    values = column.dropna().unique().tolist()
    try:
        ordered = sorted(values)
    except TypeError:
        ordered = sorted(values, key=str)
    return [*ordered, *([pd.NA] if column.isna().any() else [])]


def _scale(column: pd.Series) -> str:
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return "category"
    numbers = floats(column).dropna()
    spans = len(numbers) > 0 and numbers.min() > 0 and numbers.max() / numbers.min() > _LOG_RANGE
    return "log" if spans else "linear"


def _levels(column: pd.Series) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return a code for each run's value; runs without one share a code."""
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > _MOST_LEVELS:
        column = pd.qcut(floats(column), _MOST_LEVELS, labels=False, duplicates="drop")
    codes, _ = pd.factorize(column, use_na_sentinel=False)
    return codes.astype(np.int64)


def _rank_eta_squared(
    ranks: np.ndarray[Any, np.dtype[Any]], levels: np.ndarray[Any, np.dtype[np.int64]]
) -> tuple[float, float]:
    """Return H / (n - 1) and (H - k + 1) / (n - k), with H corrected for ties."""
    n, k = len(ranks), len(np.unique(levels))
    total = float(((ranks - ranks.mean()) ** 2).sum()) if n else 0.0
    if total == 0:
        return 0.0, 0.0
    sizes = np.bincount(levels)
    sums = np.bincount(levels, weights=ranks)
    present = sizes > 0
    means = sums[present] / sizes[present]
    between = float((sizes[present] * (means - ranks.mean()) ** 2).sum())
    share = between / total
    adjusted = (share * (n - 1) - k + 1) / (n - k) if n > k else np.nan
    return share, adjusted if np.isnan(adjusted) else max(0.0, adjusted)
