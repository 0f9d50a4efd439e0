"""All that the page says of a sweep, as plain JSON; the same store gives the same content."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.parquet.parts import read_problems
from analysis.report.columns import columns_of
from analysis.report.configs import configs_of, provenance_of
from analysis.report.curves import Curves
from analysis.report.embedding import plain, rounded
from analysis.report.evidence import (
    MEASURES,
    importance_of,
    sensitivity_of,
    verdicts_of,
)
from analysis.rerun import command_of
from analysis.sensitivity import rateless
from analysis.settings import Settings, settings_of
from analysis.tables import load_runs

MOST_PROBLEMS = 500
"""Problems on the page; the store has all of them."""
_TEXTS = ("run", "name", "directory", "reason", "rerun_of")


@dataclass(frozen=True)
class Content:
    """The JSON of a page, in the blocks that it reads as it needs them."""

    title: str
    runs: int
    blocks: dict[str, Any]
    """By id of the script element that holds it; ``report`` comes first."""


def content_of(sweep: str | None, store: Path) -> Content:
    """Read what the page is about.

    Raises:
        UserError: no store, an empty one, or an unknown sweep.
    """
    table = load_runs(sweep, store)
    settings = settings_of(table)
    columns = columns_of(table, settings)
    results = [c["key"] for c in columns if c["kind"] == "result"]
    measures = [name for name in MEASURES if name in results] or results[:1]
    curves = Curves(table["run"].tolist(), store)
    title = str(table["sweep"].iloc[0]) if sweep is not None else "all runs"
    report = {
        "title": title,
        "store": str(store),
        "columns": columns,
        "telling": settings.telling,
        "diverged": [value is True for value in table["diverged"].tolist()],
        "texts": {name: [_text(v) for v in table[name].tolist()] for name in _TEXTS},
        "overrides": [
            json.loads(v) if isinstance(v, str) else [] for v in table["overrides"].tolist()
        ],
        "rerun": [command_of(row) for row in table.to_dict("records")],
        "measures": measures,
        "use": _use(table, curves.earlier_s),
        "span": _span(table),
        "sensitivity": sensitivity_of(measures, sweep, store),
        "problems": _problems(table["run"].tolist(), store),
        "provenance": provenance_of(table),
        "curves": curves.metrics,
    }
    report |= _evidence(measures, settings, sweep, store)
    blocks = {"report": report, "axes": curves.axes, "configs": configs_of(table), **curves.blocks}
    return Content(title, len(table), blocks)


def _evidence(
    measures: list[str], settings: Settings, sweep: str | None, store: Path
) -> dict[str, Any]:
    if not measures:
        return {"verdicts": [], "importance": None}
    measure = measures[0]
    verdicts = [verdicts_of(measure, per, sweep, store) for per in (*rateless(settings)[:1], None)]
    return {
        "verdicts": [v for v in verdicts if v["rows"]],
        "importance": importance_of(measure, settings, sweep, store),
    }


def _use(table: pd.DataFrame, earlier_s: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return tokens, seconds on GPUs and on CPU threads.

    Of attempts before the last the records tell the time, and the last one's machine counts.
    """
    seconds = table["duration_s"].astype("Float64").fillna(0.0).to_numpy(dtype=float) + earlier_s
    gpus = [len(json.loads(v)) if isinstance(v, str) else 0 for v in table["gpus"].tolist()]
    threads = [1 if pd.isna(v) else int(v) for v in table["threads"].tolist()]
    tokens = [n for n in table.columns if n.startswith("final.") and n.endswith(".tokens")]
    counted = table[tokens[0]].astype("Float64").fillna(0.0).sum() if tokens else None
    attempts = table["attempts"].fillna(1).astype(int)
    return {
        "tokens": plain(counted),
        "gpu_s": float(sum(s * g for s, g in zip(seconds, gpus, strict=True))),
        "cpu_s": float(sum(s * t for s, t, g in zip(seconds, threads, gpus, strict=True) if not g)),
        "restarted": int((attempts > 1).sum()),
    }


def _span(table: pd.DataFrame) -> list[float | None]:
    """Return when the first run began and when the last one ended, in Unix seconds."""
    ends = (table["started_at"].min(), table["ended_at"].max())
    return [None if pd.isna(value) else rounded([float(value)], 12)[0] for value in ends]


def _problems(runs: list[str], store: Path) -> dict[str, Any]:
    """Return what the collector could not take of these runs or of the store as a whole."""
    members = set(runs)
    rows = [r for r in read_problems(store).to_pylist() if r["run"] is None or r["run"] in members]
    return {"count": len(rows), "rows": rows[:MOST_PROBLEMS]}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
