"""The store in other hands: polars and DuckDB read the same files without this package."""

from __future__ import annotations

import json
import math
from pathlib import Path

import duckdb
import polars as pl
import pytest

from analysis import history, runs
from analysis.collecting.collector import collect
from rundir import Run


@pytest.fixture
def parts(run_maker, monkeypatch) -> dict[str, list[str]]:
    """A store whose parts differ in their columns; the live files of each table."""
    monkeypatch.setattr("analysis.collecting.update.RUNS_PER_BUCKET", 1)
    run_maker("a", config={"lr": 1, "only_a": "x"}, steps=3)
    with Run(run_maker("b", config={"lr": 0.5}, steps=2)) as run:
        run.log("train", 3, loss=math.nan, only_b=7.0)
    collect()
    tables = json.loads(Path("store/manifest.json").read_text())["parts"]
    return {table: [f"store/{part['file']}" for part in live] for table, live in tables.items()}


def test_polars_reads_them(parts: dict[str, list[str]]) -> None:
    frames = [pl.read_parquet(part) for part in parts["history/train"]]
    table = pl.concat(frames, how="diagonal").sort("run", "step")
    ours = history("train")
    assert table["run"].to_list() == ours["run"].astype(str).tolist()
    assert table["step"].to_list() == ours["step"].tolist() == [1, 2, 3, 1, 2, 3]
    assert repr(table["loss"].to_list()) == repr(ours["loss"].tolist())
    assert table["only_b"].to_list() == [None] * 5 + [7.0]
    assert table.schema["run"] == pl.String
    found = pl.concat([pl.read_parquet(part) for part in parts["runs"]], how="diagonal")
    assert found["config.lr"].to_list() == [1.0, 0.5]
    assert found["config.only_a"].to_list() == ["x", None]
    assert found.filter(pl.col("diverged"))["name"].to_list() == ["b"]


def test_duckdb_reads_them(parts: dict[str, list[str]]) -> None:
    connection = duckdb.connect()
    rows = connection.sql(
        "SELECT run, count(*), max(step), count(only_b) "
        f"FROM read_parquet({parts['history/train']}, union_by_name=true) "
        "GROUP BY run ORDER BY run"
    ).fetchall()
    assert rows == [(run, 3, 3, seven) for run, seven in zip(runs()["run"], (0, 1), strict=True)]
    best = connection.sql(
        "SELECT r.name, h.loss FROM read_parquet($runs, union_by_name=true) r "
        "JOIN read_parquet($train, union_by_name=true) h USING (run) "
        "WHERE h.step = 2 ORDER BY r.name",
        params={"runs": parts["runs"], "train": parts["history/train"]},
    ).fetchall()
    assert [name for name, _ in best] == ["a", "b"]
    assert [loss for _, loss in best] == pytest.approx([3.8, 3.8])


def test_plain_patterns_find_every_live_file(parts: dict[str, list[str]]) -> None:
    assert sorted(map(str, Path("store").glob("runs/*.parquet"))) == sorted(parts["runs"])
    train = sorted(map(str, Path("store").glob("history/train/*.parquet")))
    assert train == sorted(parts["history/train"])
