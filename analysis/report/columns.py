"""The columns of the page's leaderboard: settings, then where a run stands and what it got."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from analysis.collecting.summary import higher_is_better
from analysis.plots.style import UNITS
from analysis.report.embedding import DIGITS, plain
from analysis.sensitivity import rateless
from analysis.settings import Settings

RESULTS = ("final.val.loss", "best.val.loss", "final.train.loss")
"""Shown unless the reader hides them, where the runs have them."""

_STANDING = {"tokens_per_second": "tokens/s", "duration_s": "time", "reason": "reason"}
_MORE = {
    "diverged": "diverged",
    "attempt": "attempt",
    "total_steps": "total steps",
    "host": "host",
    "job": "job",
    "git_sha": "commit",
    "sweep": "sweep",
    "index": "index",
    "name": "name",
    "run": "run",
}
_RATES = ("lr", "learning_rate")
_SEEDS = ("seed", "replicate")


def columns_of(table: pd.DataFrame, settings: Settings) -> list[dict[str, Any]]:
    """Return the columns as the page takes them, in their order from left to right.

    Keys of a column: ``key``, ``label``, ``title`` (full name, unit), ``kind`` (setting, state,
    result, fact), ``type`` (number, text, flag), ``shown``, ``values``; of a setting also ``role``
    (rate, seed, group or null) and of a result ``better`` (low or high).
    """
    telling, groups = settings.telling, rateless(settings)
    found = []
    for name in map(str, settings.columns):
        last = name.rsplit(".", 1)[-1]
        role = "rate" if last in _RATES else "seed" if last in _SEEDS else None
        role = role or ("group" if name in groups else None)
        more = {"shown": name in telling, "role": role}
        found.append(_column(name, name, settings.columns[name], "setting", more))
    found.sort(key=lambda column: (not column["shown"],))
    found.append(_column("state", "state", table["state"], "state", {"shown": True}))
    found.append(_column("steps", "steps", table["steps"], "fact", {"shown": True}))
    found += _results(table)
    for name, label in _STANDING.items():
        shown = bool(table[name].notna().any())
        found.append(_column(name, label, table[name], "fact", {"shown": shown}))
    for name, label in _MORE.items():
        found.append(_column(name, label, table[name], "fact", {"shown": False}))
    return found


def _results(table: pd.DataFrame) -> list[dict[str, Any]]:
    names = [n for n in table.columns if n.startswith(("final.", "best."))]
    names = [n for n in names if pd.api.types.is_numeric_dtype(table[n])]
    names.sort(key=lambda n: (n not in RESULTS, RESULTS.index(n) if n in RESULTS else 0, n))
    shown = [n for n in names if n in RESULTS] or [n for n in names if n.endswith("loss")]
    shown = shown or names[:2]
    return [_result(name, table[name], shown=name in shown) for name in names]


def _result(name: str, column: pd.Series, *, shown: bool) -> dict[str, Any]:
    kind, _, what = name.partition(".")
    unit = UNITS.get(what) or UNITS.get(what.rpartition(".")[2]) or ""
    label = what.replace(".", " ") if kind == "final" else f"{kind} {what.replace('.', ' ')}"
    better = "high" if higher_is_better(what) else "low"
    more = {"shown": shown, "better": better, "title": f"{name} {unit}".strip()}
    return _column(name, label, column, "result", more)


def _column(
    key: str, label: str, column: pd.Series, kind: str, more: dict[str, Any]
) -> dict[str, Any]:
    values = [_cell(value, kind) for value in column.tolist()]
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, bool) for value in present):
        form = "flag"
    else:
        numeric = pd.api.types.is_numeric_dtype(column)
        numbers = all(isinstance(value, (int, float)) for value in present)
        form = "number" if numeric or (present and numbers) else "text"
    if form == "text":
        values = [None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values]
    base = {"key": key, "label": label, "title": key, "kind": kind, "type": form}
    return {**base, "values": values, **more}


def _cell(value: Any, kind: str) -> Any:
    """Return a setting as it is, and what was measured to a few digits."""
    found = plain(None if not isinstance(value, list) and pd.isna(value) is True else value)
    if isinstance(found, float) and kind != "setting":
        return float(f"%.{DIGITS}g" % found)
    if found is None and isinstance(value, float):
        return "NaN"
    return found
