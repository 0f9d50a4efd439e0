"""What the sweep says: results over the learning rate, which settings win, and which matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.aggregation import compare
from analysis.report.embedding import plain, rounded
from analysis.sensitivity import importance, lr_sensitivity
from analysis.settings import Settings, describe
from rundir.errors import UserError

MEASURES = ("final.val.loss", "best.val.loss", "final.train.loss", "best.train.loss")
"""Of these the page shows learning-rate sensitivity, where the runs have them."""
_MOST_ROWS = 200
"""Comparisons on the page, of one with the best; 1,000 settings without seeds are 999."""
_MOST_PAIRED = 24
"""Groups of which each is compared with each: 276 pairs."""
_NUMBERS = ("mean", "low", "high", "min", "max")
_COUNTS = ("n", "diverged", "other")


def sensitivity_of(
    measures: list[str], sweep: str | None, store: Path
) -> dict[str, list[dict[str, Any]]]:
    """Return, by measure, a curve a group: its name, and columns of points by learning rate."""
    found = {}
    for measure in measures:
        try:
            table = lr_sensitivity(sweep, measure, store)
        except UserError:
            # Runs without a learning rate have no such curve.
            return {}
        names = [str(n) for n in table.columns[: list(table.columns).index("lr")]]
        labels = (
            [describe(row, names) for row in table.to_dict("records")]
            if names
            else [""] * len(table)
        )
        curves = []
        for label in dict.fromkeys(labels):
            rows = table[[other == label for other in labels]]
            points: dict[str, Any] = {"lr": [plain(value) for value in rows["lr"].tolist()]}
            points |= {name: _numbers(rows[name]) for name in _NUMBERS}
            points |= {name: rows[name].tolist() for name in _COUNTS}
            curves.append({"group": label or "all runs", **points})
        found[measure] = curves
    return found


def verdicts_of(measure: str, per: str | None, sweep: str | None, store: Path) -> dict[str, Any]:
    """Return the comparison of the best settings with the others, all or the best of each group.

    The first rows are those of the best group; of a few groups those of every other pair follow.
    """
    table = compare(measure, sweep, per, store=store)
    shown = table.head(_MOST_ROWS)
    if len(table) < _MOST_PAIRED:
        shown = compare(measure, sweep, per, store=store, pairs=True)
    rows = [
        {str(k): plain(None if pd.isna(v) is True else v) for k, v in row.items()}
        for row in shown.to_dict("records")
    ]
    return {"per": per, "rows": rows, "of": len(table), **_attributes(table)}


def importance_of(
    measure: str, settings: Settings, sweep: str | None, store: Path
) -> dict[str, Any]:
    """Return the settings by their share in the variation of the measure.

    A row holds the setting, its share, and the settings that cut the runs into the same groups.
    """
    table = importance(measure, sweep, store)
    table = table[table["levels"] > 1]
    rows: dict[tuple[int, ...], list[Any]] = {}
    order = list(map(str, settings.columns))
    shares = dict(zip(map(str, table["setting"]), _numbers(table["importance"]), strict=True))
    for name in sorted(shares, key=lambda name: (-(shares[name] or 0.0), order.index(name))):
        codes, _ = pd.factorize(settings.columns[name], use_na_sentinel=False)
        rows.setdefault(tuple(codes.tolist()), [name, shares[name], []])[2].append(name)
    told = [
        [name, share, [other for other in also if other != name]]
        for name, share, also in rows.values()
    ]
    return {"rows": told, **_attributes(table)}


def _attributes(table: pd.DataFrame) -> dict[str, Any]:
    return {str(name): value for name, value in table.attrs.items()}


def _numbers(column: pd.Series) -> list[float | None]:
    return rounded(column.astype("Float64").to_numpy(dtype=float, na_value=float("nan")).tolist())
