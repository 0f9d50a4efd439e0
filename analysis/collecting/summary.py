"""Summaries of a run's history: the last value, the best value, and whether the run diverged."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.parquet.columns import INT64, KEYS, Kind
from rundir.files import State

_HIGHER_IS_BETTER = frozenset(
    {"acc", "accuracy", "auc", "bleu", "f1", "mfu", "precision", "recall", "reward", "score"}
)
_WITHOUT_BEST = frozenset(
    {"epoch", "grad_norm", "learning_rate", "loss_scale", "lr", "memory", "step_time", "tokens"}
)
"""Metrics of which neither the highest nor the lowest value is the best."""

_THROUGHPUT = "tokens_per_second"

_Numbers = np.ndarray[Any, np.dtype[Any]]


def higher_is_better(metric: str) -> bool:
    """Say which way a metric is better, from its name; lower unless it is a known exception."""
    words = set(re.split(r"[^a-z0-9]+", metric.lower().replace("_", " ")))
    return bool(words & _HIGHER_IS_BETTER) or metric.endswith("per_second")


def summarise(stream: str, table: pa.Table, kinds: Mapping[str, Kind]) -> dict[int, dict[str, Any]]:
    """Return, by run code, the summary columns that one stream gives.

    ``final.<stream>.<metric>`` is the last value logged (NaN where the run diverged),
    ``best.<stream>.<metric>`` the lowest or highest finite one, ``best_step.…`` its first step.
    The table is settled and its ``run`` column holds codes. In a column that is JSON text, since
    some of its values were no numbers, the numbers count as elsewhere.
    """
    codes, steps = table.column("run").to_numpy(), table.column("step").to_numpy()
    if not len(codes):
        return {}
    starts = np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1])))
    ends = np.append(starts[1:], len(codes))
    rows = [{"steps": int(steps[end - 1])} for end in ends]
    for name in table.column_names:
        if name not in KEYS:
            texts = kinds.get(name) in {"json", "mixed"}
            _add_metric(rows, f"{stream}.{name}", name, table, starts, texts=texts)
    if stream == "train" and _THROUGHPUT in table.column_names:
        _add_throughput(rows, table.column(_THROUGHPUT), starts, ends)
    return dict(zip(codes[starts].tolist(), rows, strict=True))


def loss_columns(stream: str, metrics: Iterable[str]) -> list[str]:
    """Return the summary columns whose last value tells whether a run diverged."""
    return [f"final.{stream}.{metric}" for metric in metrics if metric.endswith("loss")]


def finish(row: dict[str, Any], columns: Iterable[str]) -> None:
    """Set what follows from the summaries: ``diverged``.

    Args:
        row: of one run.
        columns: see :func:`loss_columns`; those of all streams.
    """
    losses = [row[name] for name in columns if name in row]
    broken = any(isinstance(v, float) and not math.isfinite(v) for v in losses)
    if row.get("state") is not None or losses:
        row["diverged"] = broken or row.get("state") == State.DIVERGED.value


def _add_metric(
    rows: list[dict[str, Any]],
    label: str,
    name: str,
    table: pa.Table,
    starts: _Numbers,
    *,
    texts: bool,
) -> None:
    array = table.column(name)
    valid = array.is_valid().to_numpy()
    count = np.arange(len(valid))
    last = np.maximum.reduceat(np.where(valid, count, -1), starts)
    finals = array.take(pa.array(last, mask=last < 0)).to_pylist()
    for row, index, value in zip(rows, last, finals, strict=True):
        if index >= 0:
            row[f"final.{label}"] = json.loads(value) if texts else value
    numeric = texts or pa.types.is_floating(array.type) or pa.types.is_integer(array.type)
    if not numeric or name in _WITHOUT_BEST or name.endswith("per_second"):
        return
    values = _numbers_in(array) if texts else array.to_numpy().astype(float)
    sign = -1.0 if higher_is_better(name) else 1.0
    scores = np.where(np.isfinite(values) & valid, sign * values, np.inf)
    lowest = np.minimum.reduceat(scores, starts)
    sizes = np.diff(np.append(starts, len(scores)))
    hits = np.where(scores == np.repeat(lowest, sizes), count, len(count))
    first = np.minimum.reduceat(hits, starts)
    steps = table.column("step").to_numpy()
    for row, score, index in zip(rows, lowest.tolist(), first.tolist(), strict=True):
        if math.isfinite(score):
            row[f"best.{label}"] = sign * score
            row[f"best_step.{label}"] = int(steps[index])


def _numbers_in(array: pa.ChunkedArray) -> _Numbers:
    """Return what JSON texts hold, NaN for what is no number of Arrow's range."""
    texts = array.to_pylist()
    numbers = [math.nan if text is None else _number(json.loads(text)) for text in texts]
    return np.array(numbers, dtype=float)


def _number(value: object) -> float:
    if isinstance(value, float):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value in INT64:
        return float(value)
    return math.nan


def _add_throughput(
    rows: list[dict[str, Any]], array: pa.ChunkedArray, starts: _Numbers, ends: _Numbers
) -> None:
    """The median is not moved by the first steps, which compile and warm up."""
    if not pa.types.is_floating(array.type) and not pa.types.is_integer(array.type):
        return
    values = array.to_numpy().astype(float)
    for row, start, end in zip(rows, starts, ends, strict=True):
        figures = values[start:end]
        figures = figures[np.isfinite(figures)]
        if len(figures):
            row[_THROUGHPUT] = float(np.median(figures))
