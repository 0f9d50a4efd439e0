"""Curves for display: every run of every metric, thinned to what a screen can show.

A curve of n points that is longer than its share is cut into bins of equal length. Of each bin the
lowest and the highest point stay, so that no spike is lost, and the mean, which smoothing needs:
smoothing the extremes would pull a curve to the middle of its noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from analysis.parquet import manifest as manifests
from analysis.parquet.columns import KEYS
from analysis.parquet.manifest import RUNS
from analysis.parquet.parts import history_table
from analysis.plots.style import UNITS
from analysis.report.embedding import rounded
from analysis.tables import history

POINTS = 90_000
"""Points of one metric on the page, all runs together."""
FEWEST, MOST = 40, 600
"""Bounds of the points of one curve."""
DIGITS = 5
KNOTS = 24
"""Points by which a run's tokens and seconds are known along its steps."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Kept = tuple[Ints, Ints, Floats]
"""Index of the points that stay, first index of each bin, mean of each bin."""


def thinned(values: Floats, most: int) -> Kept | None:
    """Choose about ``most`` points of a curve; None where all of it may stay.

    Args:
        values: of a run, one a step; what is not finite breaks the line.
        most: at least 4.
    """
    count = len(values)
    if count <= most:
        return None
    size = -(-count // (most // 2))
    bins = -(-count // size)
    padded = np.full(bins * size, np.nan)
    padded[:count] = values
    grid = padded.reshape(bins, size)
    finite = np.isfinite(grid)
    low = np.where(finite, grid, np.inf).argmin(axis=1)
    high = np.where(finite, grid, -np.inf).argmax(axis=1)
    starts = np.arange(bins) * size
    ends = np.array([0, count - 1])
    index = np.unique(np.concatenate([starts + low, starts + high, ends]))
    number = finite.sum(axis=1)
    sums = np.where(finite, grid, 0.0).sum(axis=1)
    means = np.divide(sums, number, out=np.full(bins, np.nan), where=number > 0)
    return index, np.minimum(starts + size // 2, count - 1), means


class Curves:
    """The curves of a selection of runs, a block of JSON for each metric."""

    def __init__(self, runs: Sequence[str], store: Path) -> None:
        self.metrics: list[dict[str, Any]] = []
        """One entry a metric: id, stream, metric, label, and how many of how many points stay."""
        self.blocks: dict[str, Any] = {}
        """By id: ``grids`` of steps, and of each run its index, grid, values and, where it is
        thinned, the grid and values of its means."""
        self.axes: list[dict[str, Any] | None] = [None] * len(runs)
        """By run: ``steps``, and ``tokens`` and ``seconds`` there; null where not logged."""
        self.earlier_s = np.zeros(len(runs))
        """By run: seconds of its attempts before the last, from each one's first record to the last
        that a later attempt did not replace."""
        self._codes = {run: code for code, run in enumerate(runs)}
        self._most = min(MOST, max(FEWEST, POINTS // max(len(runs), 1)))
        schemas = manifests.load(store).schemas
        streams = [name.partition("/")[2] for name in schemas if name != RUNS]
        for stream in sorted(streams, key=lambda name: (name != "val", name != "train", name)):
            self._add_stream(stream, schemas[history_table(stream)], list(runs), store)

    def _add_stream(
        self, stream: str, schema: Mapping[str, str], runs: list[str], store: Path
    ) -> None:
        table = history(stream, runs=runs, store=store)
        if not len(table):
            return
        codes = table["run"].cat.codes.to_numpy()
        names = [self._codes[str(name)] for name in table["run"].cat.categories]
        starts = np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1])))
        pieces = [
            (names[codes[start]], slice(start, end))
            for start, end in zip(starts, np.append(starts[1:], len(codes)), strict=True)
        ]
        pieces.sort(key=lambda piece: piece[0])
        steps = table["step"].to_numpy(dtype=np.int64)
        self._add_axes(table, steps, pieces)
        self._add_earlier(table, pieces)
        for metric in [n for n in schema if n not in KEYS and _is_number(table[n])]:
            column = pa.array(table[metric].array).cast(pa.float64())
            logged = column.is_valid().to_numpy(zero_copy_only=False)
            values = column.fill_null(np.nan).to_numpy(zero_copy_only=False)
            self._add_metric(stream, metric, steps, values, logged, pieces)

    def _add_metric(
        self,
        stream: str,
        metric: str,
        steps: Ints,
        values: Floats,
        logged: npt.NDArray[np.bool_],
        pieces: list[tuple[int, slice]],
    ) -> None:
        grids: dict[tuple[int, ...], int] = {}
        curves: list[list[Any]] = []
        points = shown = 0
        for run, piece in pieces:
            mine = logged[piece]
            x, y = steps[piece][mine], values[piece][mine]
            if not np.isfinite(y).any():
                continue
            kept = thinned(y, self._most)
            chosen = x if kept is None else x[kept[0]]
            curve: list[Any] = [run, _grid(grids, chosen)]
            curve.append(rounded((y if kept is None else y[kept[0]]).tolist(), DIGITS))
            if kept is not None:
                curve += [_grid(grids, x[kept[1]]), rounded(kept[2].tolist(), DIGITS)]
            curves.append(curve)
            points, shown = points + len(y), shown + len(chosen)
        if not curves:
            return
        name = f"{stream}.{metric}"
        entry = {"id": f"curve-{len(self.metrics)}", "name": name, "points": points}
        label = UNITS.get(name) or UNITS.get(metric) or metric
        entry |= {"label": label if stream in label or name in UNITS else f"{label}, {stream}"}
        self.metrics.append({**entry, "shown": shown, "runs": len(curves)})
        self.blocks[str(entry["id"])] = {"grids": [_gaps(g) for g in grids], "curves": curves}

    def _add_axes(self, table: Any, steps: Ints, pieces: list[tuple[int, slice]]) -> None:
        """Take tokens and seconds from the stream that tells most of a run."""
        times = table["t"].to_numpy(dtype=np.float64, na_value=np.nan)
        attempts = table["attempt"].to_numpy(dtype=np.float64, na_value=np.nan)
        tokens = None
        if "tokens" in table:
            tokens = table["tokens"].to_numpy(dtype=np.float64, na_value=np.nan)
        for run, piece in pieces:
            known = self.axes[run]
            if known is not None and known["n"] >= len(steps[piece]):
                continue
            index = _knots(piece.stop - piece.start)
            x = steps[piece]
            axes: dict[str, Any] = {"n": len(x), "steps": x[index].tolist()}
            seconds = _seconds(x, times[piece], attempts[piece])
            axes["seconds"] = None if seconds is None else rounded(seconds[index].tolist(), 7)
            read = None if tokens is None else tokens[piece][index]
            whole = read is not None and bool(np.isfinite(read).all())
            axes["tokens"] = read.tolist() if whole and read is not None else None
            self.axes[run] = axes

    def _add_earlier(self, table: pd.DataFrame, pieces: list[tuple[int, slice]]) -> None:
        times = table["t"].to_numpy(dtype=np.float64, na_value=np.nan)
        attempts = table["attempt"].to_numpy(dtype=np.float64, na_value=np.nan)
        for run, piece in pieces:
            mine, t = attempts[piece], times[piece]
            earlier = np.unique(mine[np.isfinite(t) & (mine < np.max(mine, initial=0.0))])
            known = [t[(mine == attempt) & np.isfinite(t)] for attempt in earlier]
            seconds = sum(float(np.ptp(at)) for at in known)
            self.earlier_s[run] = max(self.earlier_s[run], seconds)


def _is_number(column: pd.Series) -> bool:
    numeric = pd.api.types.is_numeric_dtype(column)
    return bool(numeric and not pd.api.types.is_bool_dtype(column))


def _grid(grids: dict[tuple[int, ...], int], steps: Ints) -> int:
    return grids.setdefault(tuple(steps.tolist()), len(grids))


def _gaps(steps: Sequence[int]) -> list[int]:
    """Return the first step and the distances between them, which are short to write."""
    return [step - before for before, step in zip((0, *steps), steps, strict=False)]


def _knots(count: int) -> Ints:
    return np.unique(np.linspace(0, count - 1, min(KNOTS, count)).round().astype(np.int64))


def _seconds(steps: Ints, times: Floats, attempts: Floats) -> Floats | None:
    """Return seconds of training up to each record, without the waits between attempts.

    What a wait hides, and the steps before the first record, count at the run's median pace.
    """
    if not np.isfinite(times).all():
        return None
    gaps, strides = np.diff(times), np.diff(steps)
    waited = (np.diff(attempts) != 0) | (gaps < 0)
    paces = gaps[~waited] / np.maximum(strides[~waited], 1)
    pace = float(np.median(paces)) if len(paces) else 0.0
    gaps = np.where(waited, pace * strides, gaps)
    return np.concatenate(([pace * steps[0]], gaps)).cumsum()
