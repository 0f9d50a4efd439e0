"""Runs that differ only in their seed, taken together; and which of such groups beats which."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from analysis.lookup import find_column
from analysis.outcomes import Outcomes, outcomes
from analysis.settings import Settings, describe
from analysis.statistics import CONFIDENCE, LEVEL, Verdict, beats, half_width, holm
from analysis.tables import REPLICATE
from rundir.errors import require

_DOUBLE = pd.ArrowDtype(pa.float64())
_COUNT = pd.ArrowDtype(pa.int64())
_TEXT = pd.ArrowDtype(pa.string())
_BOOL = pd.ArrowDtype(pa.bool_())


def aggregate(
    metric: str = "final.val.loss",
    sweep: str | None = None,
    confidence: float = CONFIDENCE,
    store: Path | str = "store",
) -> pd.DataFrame:
    """Return one row a group of runs that differ only in their seed, the best mean first.

    Columns:
        the settings that tell the groups apart, e.g. optimizer and lr.
        n: int64, runs with a result: completed, or of unknown end, with a finite value.
        mean, std: double, over those, in the metric's unit; std is that of the sample.
        low, high: double, Student's t interval of the mean; null for fewer than two runs.
        min, max: double.
        diverged: int64, runs that diverged.
        other: int64, runs that failed, are not finished, or lack the metric.

    ``attrs`` holds ``metric`` (its full name), ``confidence`` and ``method``.

    Args:
        metric: a summary column of :func:`analysis.runs`, or ``at_STEP.STREAM.METRIC``: the last
            value up to that step.
        sweep: name of a sweep, or the path of its directory; every run by default.
        confidence: of the interval, between 0 and 1.
        store: directory of the store.

    Raises:
        UserError: no store, an unknown sweep or metric, or an impossible confidence.
    """
    require(0 < confidence < 1, "confidence", confidence, "between 0 and 1")
    found = outcomes(metric, sweep, store)
    names = seedless(found.settings)
    table = grouped(found, found.settings.columns[names], confidence)
    table = table.sort_values("mean", ascending=found.lower, kind="stable", na_position="last")
    result: pd.DataFrame = table.reset_index(drop=True)
    result.attrs = {
        "metric": found.measure,
        "confidence": confidence,
        "method": "mean over runs that differ only in their seed, with Student's t interval",
    }
    return result


def compare(
    metric: str = "final.val.loss",
    sweep: str | None = None,
    per: str | None = None,
    level: float = LEVEL,
    store: Path | str = "store",
    *,
    pairs: bool = False,
) -> pd.DataFrame:
    """Say of the best group whether it beats each of the others, by :func:`analysis.beats`.

    The best group has the best mean among those of two runs or more, since one run shows nothing
    of chance; among all where no group has two. Without any result there is no row.

    As there are as many questions as other groups, each probability is adjusted for their number
    (Holm); and as the runs that are tested also chose the group that asks, it is multiplied by the
    number of groups that could have been it. Of groups that are all alike, one then beats another
    in fewer than ``level`` of all sweeps; by Holm alone it was up to four times as many. A group of
    which a run diverged beats none: its mean is over the runs that came through. That the seeds
    that chose a setting also judge it favours settings tried at many rates; seeds of their own for
    the finalists do away with that.

    Columns:
        a, b: text, two groups by their settings: the best, and another. A group of one run may
            have the better mean, and comes after those of more.
        mean_a, mean_b: double, in the metric's unit.
        n_a, n_b: int64, runs that the test uses; diverged_a, diverged_b: int64.
        test: text, ``paired t`` where the seeds pair, ``Welch t`` or ``none``.
        difference: double, a minus b; low, high: double, its two-sided 95 % interval.
        p: double, one-sided; p_adjusted: double, by Holm times the groups that could be a.
        beats: bool, p_adjusted is below the level.
        reason: text, why it does not, else null.

    Args:
        metric: as for :func:`aggregate`.
        sweep: name of a sweep, or the path of its directory; every run by default.
        per: a setting, e.g. ``optimizer``: compare only the best group for each of its values.
        level: p must be less.
        store: directory of the store.
        pairs: compare each group with every other, not only the best; n groups take n² tests.

    Raises:
        UserError: no store, or an unknown sweep, metric or setting.
    """
    require(0 < level < 1, "level", level, "between 0 and 1")
    found = outcomes(metric, sweep, store)
    names = seedless(found.settings)
    sign = 1 if found.lower else -1
    groups = sorted(
        _groups(found, names), key=lambda g: (-min(len(g["results"]), 2), sign * g["mean"])
    )
    if per is not None:
        column = find_column(per, found.settings.columns[names])
        first: dict[str, dict[str, Any]] = {}
        for group in groups:
            first.setdefault(str(group["row"][column]), group)
        groups = list(first.values())
    asking = [group for group in groups if not math.isnan(group["mean"])]
    asking = asking if pairs else asking[:1]
    rows = [row for place in range(len(asking)) for row in _rows(groups, place, level, found.lower)]
    result = _typed(rows)
    result.attrs = {
        "metric": found.measure,
        "level": level,
        "method": "one-sided t test, paired by seed where seeds pair, else Welch's; adjusted for "
        "the number of groups (Holm) and for the choice of the best",
    }
    return result


def seedless(settings: Settings) -> list[str]:
    """Return the settings that tell runs apart whose seeds are the same."""
    kept = [name for name in map(str, settings.columns) if not is_replicate(name)]
    asked = tuple(name for name in settings.asked if name in kept)
    return Settings(settings.columns[kept], asked).telling


def is_replicate(name: str) -> bool:
    """Say whether a setting only repeats a run: a seed."""
    return name.rsplit(".", 1)[-1] in REPLICATE


def grouped(found: Outcomes, keys: pd.DataFrame, confidence: float = CONFIDENCE) -> pd.DataFrame:
    """Return one row a combination of the keys: counts, mean and spread, as :func:`aggregate`."""
    names = list(keys.columns)
    frame = keys.assign(
        value=found.value, n=found.has_result, diverged=found.diverged, other=found.other
    )
    by: Any = names or [0] * len(frame)
    groups = frame.groupby(by, dropna=False, sort=True, observed=True)
    result: pd.DataFrame = groups.agg(
        n=("n", "sum"),
        mean=("value", "mean"),
        std=("value", "std"),
        min=("value", "min"),
        max=("value", "max"),
        diverged=("diverged", "sum"),
        other=("other", "sum"),
    )
    reach = [
        half_width(std, n, confidence)
        for std, n in zip(result["std"].tolist(), result["n"].tolist(), strict=True)
    ]
    result.insert(3, "low", result["mean"] - reach)
    result.insert(4, "high", result["mean"] + reach)
    result = result.reset_index(drop=not names)
    counts, numbers = ("n", "diverged", "other"), ("mean", "std", "low", "high", "min", "max")
    kinds = dict.fromkeys(counts, _COUNT) | dict.fromkeys(numbers, _DOUBLE)
    # By way of pandas' own Float64, which makes NaN, here the mean of nothing, a null.
    typed: pd.DataFrame = result.astype(dict.fromkeys(numbers, "Float64")).astype(kinds)
    return typed


def group_labels(columns: pd.DataFrame, names: list[str]) -> list[str]:
    """Return the labels of all groups in the order of their settings, that of :func:`grouped`.

    Every figure of a sweep takes a group's colour from its place here.
    """
    by: Any = [columns[name] for name in names] or [0] * len(columns)
    groups = columns.groupby(by, dropna=False, sort=True, observed=True)
    return [describe(rows.iloc[0].to_dict(), names) for _, rows in groups]


def _groups(found: Outcomes, names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield each group's settings, label, values and results by seed where they have one each."""
    columns = found.settings.columns
    seeds = [name for name in columns if is_replicate(str(name))]
    by: Any = [columns[name] for name in names] or [0] * len(columns)
    for _, rows in columns.groupby(by, dropna=False, sort=True, observed=True):
        values = found.value.loc[rows.index].dropna()
        marks = [tuple(map(str, row)) for row in rows.loc[values.index, seeds].to_numpy()]
        unique = bool(seeds) and len(set(marks)) == len(marks)
        first = rows.iloc[0].to_dict()
        yield {
            "row": first,
            "label": describe(first, names) or "all runs",
            "mean": float(values.mean()),
            "results": dict(zip(marks, values, strict=True)) if unique else values.tolist(),
            "diverged": int(found.diverged.loc[rows.index].sum()),
        }


def _rows(
    groups: list[dict[str, Any]], place: int, level: float, lower: bool
) -> Iterator[dict[str, Any]]:
    """Yield the comparisons of one group with those after it, which are worse.

    Those before it count among its questions too: which of them it is asked about is known only
    from the results.
    """
    a = groups[place]
    others = [group for group in groups if group is not a]
    verdicts = [beats(a["results"], b["results"], level=level, lower=lower) for b in others]
    candidates = sum(len(group["results"]) > 1 for group in groups)
    adjusted = [
        math.nan if math.isnan(p) else min(1.0, candidates * p)
        for p in holm([verdict.p for verdict in verdicts])
    ]
    for b, verdict, p in list(zip(others, verdicts, adjusted, strict=True))[place:]:
        yield _comparison(a, b, verdict, p)


def _comparison(
    a: dict[str, Any], b: dict[str, Any], verdict: Verdict, adjusted: float
) -> dict[str, Any]:
    wins = adjusted < verdict.level and not a["diverged"]
    return {
        "a": a["label"],
        "b": b["label"],
        "mean_a": a["mean"],
        "mean_b": b["mean"],
        "n_a": verdict.n_a,
        "n_b": verdict.n_b,
        "diverged_a": a["diverged"],
        "diverged_b": b["diverged"],
        "test": verdict.test,
        "difference": verdict.difference,
        "low": verdict.low,
        "high": verdict.high,
        "p": verdict.p,
        "p_adjusted": adjusted,
        "beats": wins,
        "reason": None if wins else _reason(a, verdict, adjusted),
    }


def _reason(a: dict[str, Any], verdict: Verdict, adjusted: float) -> str:
    if verdict.test == "none":
        least = min(verdict.n_a, verdict.n_b)
        return "needs two runs a side" if least < 2 else "the runs of each side are all alike"
    if a["diverged"]:
        return f"{a['diverged']} of its runs diverged"
    return f"p = {adjusted:.2g}; must be below {verdict.level:g}"


def _typed(rows: list[dict[str, Any]]) -> pd.DataFrame:
    kinds: dict[str, pd.ArrowDtype] = {"a": _TEXT, "b": _TEXT}
    kinds |= dict.fromkeys(("mean_a", "mean_b"), _DOUBLE)
    kinds |= dict.fromkeys(("n_a", "n_b", "diverged_a", "diverged_b"), _COUNT)
    kinds["test"] = _TEXT
    kinds |= dict.fromkeys(("difference", "low", "high", "p", "p_adjusted"), _DOUBLE)
    kinds |= {"beats": _BOOL, "reason": _TEXT}
    columns = {
        name: pd.Series([_null(row[name]) for row in rows], dtype=kind)
        for name, kind in kinds.items()
    }
    table: pd.DataFrame = pd.DataFrame(columns)
    return table


def _null(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
