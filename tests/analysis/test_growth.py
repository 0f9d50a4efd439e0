"""Runs that go on: their new steps become parts of their own, and nobody sees a step twice."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

from analysis import history, runs
from analysis.collecting.collector import collect
from analysis.parquet.manifest import load

STORE = Path("store")


def grow(run: Path, steps: Iterable[int], attempt: int = 1, loss: float = 0.5) -> None:
    """Append one line of train a step."""
    with (run / "metrics.jsonl").open("a") as file:
        for step in steps:
            record = {"stream": "train", "step": step, "t": 1.5, "attempt": attempt, "loss": loss}
            file.write(json.dumps(record) + "\n")


def live(table: str = "history/train") -> list[str]:
    return [part.file for part in load(STORE).parts[table]]


def assert_like_a_fresh_store() -> None:
    """Hold the store against one that is made from nothing, and its files against each other."""
    collect(store="fresh", workers=1)
    names = [name for name in load(STORE).schemas if name.startswith("history/")]
    for name in names:
        stream = name.partition("/")[2]
        ours, fresh = (_text_runs(history(stream, store=store)) for store in ("store", "fresh"))
        grouped = (ours["run"] != ours["run"].shift()).sum()
        assert grouped == ours["run"].nunique()
        order = ["run", "step"]
        pd.testing.assert_frame_equal(
            ours.sort_values(order, ignore_index=True, kind="stable"),
            fresh.sort_values(order, ignore_index=True, kind="stable"),
            check_like=True,
        )
        read = pl.concat([pl.read_parquet(STORE / part) for part in live(name)], how="diagonal")
        assert not read.select("run", "step").is_duplicated().any()
        assert len(read) == len(fresh)
    ours, fresh = (
        runs(store=store, all_columns=True).sort_values("run", ignore_index=True)
        for store in ("store", "fresh")
    )
    pd.testing.assert_frame_equal(ours[sorted(ours)], fresh[sorted(fresh)])
    shutil.rmtree("fresh")


def _text_runs(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(run=frame["run"].astype(str))


def test_later_steps_leave_the_stored_ones_untouched(run_maker) -> None:
    run = run_maker("a", steps=20)
    run_maker("b", steps=20)
    collect()
    before = {name: (STORE / name).stat().st_mtime_ns for name in live()}
    validated = live("history/val")
    grow(run, [21, 22])
    collect()
    assert len(live()) == 2
    assert {name: (STORE / name).stat().st_mtime_ns for name in live()[:1]} == before
    assert live("history/val") == validated
    assert len(pl.read_parquet(STORE / live()[1])) == 2
    assert runs().set_index("name")["steps"].to_dict() == {"a": 22, "b": 20}
    assert_like_a_fresh_store()


def test_steps_that_a_resume_repeats_replace_the_stored_ones(run_maker) -> None:
    run = run_maker("a", steps=20)
    collect()
    grow(run, [20, 21], attempt=2, loss=0.25)
    collect()
    assert len(live()) == 1
    table = history("train")
    assert table["step"].tolist() == list(range(1, 22))
    assert table["loss"].tolist()[-2:] == [0.25, 0.25]
    assert_like_a_fresh_store()


def test_parts_are_joined_when_there_are_many(run_maker, monkeypatch) -> None:
    monkeypatch.setattr("analysis.collecting.bucket.MOST_PARTS", 3)
    run = run_maker("a", steps=20)
    found = []
    for step in range(21, 26):
        collect()
        found.append(len(live()))
        grow(run, [step])
    assert found == [1, 2, 3, 1, 2]


def test_a_growth_by_more_than_a_quarter_is_written_with_the_rest(run_maker) -> None:
    run = run_maker("a", steps=8)
    collect()
    grow(run, [9, 10, 11])
    collect()
    assert len(live()) == 1
    assert_like_a_fresh_store()


def test_a_type_that_only_the_new_steps_have_reaches_the_stored_parts(run_maker) -> None:
    run = run_maker("a", steps=20, loss=lambda step: step)
    collect()
    grow(run, [21])
    collect()
    assert len(live()) == 2
    types = [pl.read_parquet_schema(STORE / part)["loss"] for part in live()]
    assert types == [pl.Float64, pl.Float64]
    grow(run, [22], loss=7)
    collect()
    assert len(live()) == 3
    assert_like_a_fresh_store()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_to_runs_the_store_is_as_if_made_from_nothing(
    run_maker, monkeypatch, seed: int
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr("analysis.collecting.update.RUNS_PER_BUCKET", 3)
    monkeypatch.setattr("analysis.collecting.bucket.MOST_PARTS", 3)
    last = {run_maker(f"r{number}", steps=10): 10 for number in range(5)}
    for number in range(5, 13):
        collect(workers=1)
        for run in draw.sample(sorted(last), draw.randint(0, min(3, len(last)))):
            event = draw.choice(["on", "on", "on", "again", "rewritten", "gone"])
            if event == "gone":
                shutil.rmtree(run)
                del last[run]
                continue
            if event == "rewritten":
                (run / "metrics.jsonl").unlink()
                last[run] = 0
            begin = last[run] + 1 - (2 if event == "again" and last[run] > 2 else 0)
            last[run] = begin + draw.randint(0, 3)
            grow(run, range(begin, last[run] + 1), attempt=1 + (event == "again"), loss=number)
        if draw.random() < 0.4:
            last[run_maker(f"r{number}", steps=4)] = 4
    collect(workers=1)
    assert_like_a_fresh_store()
