"""Collecting: complete, incremental, and unshaken by what lies in a run directory."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from analysis import history, runs
from analysis.collecting.collector import Summary, collect
from analysis.parquet.parts import read_problems
from rundir import Run

RECORD = {"stream": "train", "step": 1, "t": 1.0, "attempt": 1, "loss": 2.0}


def counts(summary: Summary) -> tuple[int, int, int]:
    return summary.new, summary.changed, summary.unchanged


def test_every_run_is_a_row_also_failed_diverged_and_missing_ones(
    sweep_place: Path, problems
) -> None:
    summary = collect()
    assert counts(summary) == (6, 0, 0)
    assert summary.planned == 1
    table = runs().set_index("name")
    assert table["state"].to_dict() == {
        "a-0.001": "completed",
        "a-0.01": "completed",
        "m-0.001": "completed",
        "m-0.01": "completed",
        "a-1": "diverged",
        "m-1": "failed",
        "m-0.1": "planned",
    }
    assert table["reason"]["m-1"] == "RuntimeError: no memory"
    assert table["diverged"].to_dict()["a-1"] is True
    assert table["lr"]["m-0.1"] == 0.1
    assert table["optimizer"]["m-0.1"] == "muon"
    assert problems() == []


def test_a_planned_run_becomes_its_own_row_once_it_starts(sweep_place: Path, run_maker) -> None:
    collect()
    run_maker("m-0.1", optimizer="muon", lr=0.1)
    summary = collect()
    assert (summary.new, summary.planned) == (1, 0)
    assert runs()["name"].tolist().count("m-0.1") == 1


@pytest.mark.parametrize("name", ["results", "results/quickstart"])
def test_a_sweep_below_a_root_of_any_name_has_each_run_once(sweep_place: Path, name: str) -> None:
    (sweep_place / "multirun").rename(sweep_place / "results")
    summary = collect([name])
    assert summary.planned == 1
    found = runs()
    assert found["run"].is_unique
    assert found["state"].tolist().count("planned") == 1


def test_nothing_changed_writes_nothing_but_the_time(sweep_place: Path) -> None:
    collect()
    before = {p: p.read_bytes() for p in Path("store").rglob("*") if p.is_file()}
    inodes = {p: p.stat().st_ino for p in before if p.name != ".lock"}
    assert counts(collect()) == (0, 0, 6)
    assert {p: p.stat().st_ino for p in before if p.name != ".lock"} == inodes
    assert {p: p.read_bytes() for p in before} == before


def test_a_grown_run_is_read_from_where_it_ended(run_maker, problems) -> None:
    path = run_maker("a", steps=3)
    run_maker("b", steps=3)
    collect()
    metrics = path / "metrics.jsonl"
    # Only new bytes are read: spoiling an old one, far before the end, goes unseen.
    content = bytearray(metrics.read_bytes())
    content[2:3] = b"#"
    metrics.write_bytes(content + json.dumps(RECORD | {"step": 4, "loss": 0.5}).encode() + b"\n")
    assert counts(collect()) == (0, 1, 1)
    assert history(metrics="loss")["step"].tolist() == [1, 2, 3, 4, 1, 2, 3]
    assert runs().set_index("name")["final.train.loss"]["a"] == 0.5
    assert problems() == []


def test_a_rewritten_file_is_read_anew(run_maker) -> None:
    path = run_maker("a", steps=30)
    collect()
    (path / "metrics.jsonl").write_text(json.dumps(RECORD) + "\n")
    collect()
    assert history()["loss"].tolist() == [2.0]
    bigger = "".join(json.dumps(RECORD | {"step": s, "loss": 7.0}) + "\n" for s in range(9))
    (path / "metrics.jsonl").write_text(bigger)
    collect()
    assert history()["loss"].tolist() == [7.0] * 9


def test_a_torn_last_line_waits_and_is_then_read_whole(run_maker, problems) -> None:
    path = run_maker("a", steps=2) / "metrics.jsonl"
    line = json.dumps(RECORD | {"step": 3}) + "\n"
    with path.open("a") as file:
        file.write(line[:20])
    collect()
    assert history()["step"].tolist() == [1, 2]
    assert problems() == [("torn", "the last 20 bytes are no whole line; they wait")]
    with path.open("a") as file:
        file.write(line[20:])
    collect()
    assert history()["step"].tolist() == [1, 2, 3]
    assert problems() == []


def test_a_bad_line_inside_is_a_problem_with_its_place(run_maker) -> None:
    path = run_maker("a", steps=1) / "metrics.jsonl"
    offset = path.stat().st_size
    with path.open("a") as file:
        file.write('{"stream": "tr{"broken\n[1]\n{"step": 1}\n' + json.dumps(RECORD) + "\n")
    collect()
    rows = [r for r in read_problems(Path("store")).to_pylist() if r["offset"] is not None]
    assert [(r["offset"] - offset, r["detail"]) for r in rows] == [
        (0, 'not JSON: {"stream": "tr{"broken '),
        (23, "not an object: [1] "),
        (27, 'stream is no name: {"step": 1} '),
    ]
    assert history()["loss"].tolist() == [2.0]


def test_thousands_of_bad_lines_are_counted_not_listed(run_maker, problems) -> None:
    path = run_maker("a", steps=1) / "metrics.jsonl"
    path.write_text("garbage\n" * 5000)
    collect()
    assert len(problems()) == 100
    assert ("line", "4901 more bad lines") in problems()


def test_the_highest_attempt_wins_at_each_step(place: Path) -> None:
    directory = Path("outputs/run")
    with Run(directory) as run:
        for step in range(1, 6):
            run.log("train", step, loss=1.0, old=0.0)
    collect()
    with Run(directory) as run:
        for step in range(3, 5):
            run.log("train", step, loss=2.0)
    collect()
    table = history()
    assert table["attempt"].tolist() == [1, 1, 2, 2, 1]
    assert table["loss"].tolist() == [1.0, 1.0, 2.0, 2.0, 1.0]
    assert table["old"].isna().tolist() == [False, False, True, True, False]


def test_records_of_one_step_are_laid_over_each_other(place: Path) -> None:
    with Run("outputs/run") as run:
        run.log("train", 1, loss=1.0)
        run.log("train", 1, grad_norm=0.5)
        run.log("train", 1, loss=float("nan"))
    collect()
    table = history()
    assert len(table) == 1
    assert table["grad_norm"][0] == 0.5
    assert table["loss"].isna().tolist() == [False]
    assert str(table["loss"][0]) == "nan"


def test_nan_is_kept_apart_from_not_logged(place: Path) -> None:
    with Run("outputs/run") as run:
        run.log("val", 1, loss=float("nan"), accuracy=0.5)
        run.log("val", 2, loss=float("inf"))
    collect()
    table = history("val")
    assert table["loss"].isna().tolist() == [False, False]
    assert table["accuracy"].isna().tolist() == [False, True]
    assert bool(runs()["diverged"][0])


def test_whole_numbers_and_floats_of_one_column_join_to_floats(run_maker, problems) -> None:
    run_maker("a", config={"lr": 1})
    collect()
    run_maker("b", config={"lr": 0.5})
    collect()
    table = runs(all_columns=True)
    assert str(table["config.lr"].dtype) == "double[pyarrow]"
    assert table["config.lr"].tolist() == [1.0, 0.5]
    assert problems() == []


def test_types_that_do_not_join_become_json_text_and_a_problem(run_maker, problems) -> None:
    run_maker("a", config={"lr": 0.5, "schedule": [1, 2]})
    collect()
    run_maker("b", config={"lr": "fast", "schedule": None})
    collect()
    table = runs(all_columns=True)
    assert table["config.lr"].tolist() == ["0.5", '"fast"']
    assert table["config.schedule"].tolist()[0] == "[1, 2]"
    detail = "runs: config.lr has values of several types; kept as JSON text"
    assert problems() == [("type", detail)]


def test_metrics_of_drifting_type_lose_nothing(place: Path, bare) -> None:
    lines = [RECORD | {"x": x, "step": i} for i, x in enumerate([1, 0.5, "word", True, None, [1]])]
    bare("outputs/a", run_json="{}", metrics_jsonl="".join(json.dumps(r) + "\n" for r in lines))
    collect()
    assert history()["x"].tolist()[:4] == ["1", "0.5", '"word"', "true"]
    assert history()["x"].isna().tolist() == [False] * 4 + [True, False]


def test_summaries_take_the_numbers_of_a_column_that_is_text_in_part(place: Path, bare) -> None:
    for name, values in (("a", [3.0, 1.5, 2]), ("b", ["word", 4.0, math.nan]), ("c", [[1], "x"])):
        lines = [RECORD | {"loss": value, "step": i} for i, value in enumerate(values)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        bare(f"outputs/{name}", run_json="{}", metrics_jsonl=text)
    collect()
    table = runs(all_columns=True)
    assert table["best.train.loss"].tolist()[:2] == [1.5, 4.0]
    assert table["best_step.train.loss"].tolist()[:2] == [1, 1]
    assert table["final.train.loss"].tolist() == ["2.0", "NaN", '"x"']
    assert table["diverged"].tolist() == [False, True, False]


def test_one_run_s_word_takes_no_numbers_from_the_others(run_maker, bare) -> None:
    run_maker("a", config={"lr": 1}, overrides=["lr=1"])
    line = json.dumps(RECORD | {"loss": "word", "step": 1}) + "\n"
    record = json.dumps({"version": 1, "sweep": "bad", "config": {"lr": "fast"}})
    bad = bare("outputs/b", run_json=record, metrics_jsonl=line)
    collect()
    assert str(history("train")["loss"].dtype) == "string[pyarrow]"
    for _ in range(2):
        table = runs("quickstart", all_columns=True)
        assert str(history("train", "quickstart", "loss")["loss"].dtype) == "double[pyarrow]"
        assert str(table["final.train.loss"].dtype) == "double[pyarrow]"
        assert table["config.lr"].tolist() == [1]
        shutil.rmtree(bad)
        Path("outputs").mkdir(exist_ok=True)
        collect()
        bad.mkdir()
    assert str(history("train")["loss"].dtype) == "double[pyarrow]"


def test_a_column_that_comes_or_goes_between_runs_is_never_dropped(run_maker) -> None:
    run_maker("a", config={"only_a": 1, "empty": None})
    collect()
    with Run(run_maker("b", config={"only_b": 2})) as run:
        run.log("train", 99, only_b=1.0)
    collect()
    assert {"config.only_a", "config.only_b", "config.empty"} <= set(runs(all_columns=True))
    assert "only_b" in history()
    shutil.rmtree("store")
    collect()
    assert {"config.only_a", "config.only_b", "config.empty"} <= set(runs(all_columns=True))


def test_promise_24_deleting_the_store_loses_nothing(sweep_place: Path, run_maker) -> None:
    collect()
    with Run(sweep_place / "multirun/quickstart/nano/muon/m-1") as run:
        run.log("train", 2, loss=1.5)
    run_maker("late", lr=0.3, config={"new": {"key": 1}})
    collect()
    grown = runs(all_columns=True), history("train"), history("val")
    shutil.rmtree("store")
    collect()
    for before, after in zip(
        grown, (runs(all_columns=True), history(), history("val")), strict=True
    ):
        columns = sorted(before.columns)
        assert sorted(after.columns) == columns
        order = ["run", "step"] if "step" in columns else ["run"]
        frames = [t[columns].astype({"run": str}).sort_values(order) for t in (before, after)]
        pd.testing.assert_frame_equal(*[f.reset_index(drop=True) for f in frames])


def test_a_removed_run_leaves_the_store(run_maker) -> None:
    shutil_target = run_maker("a")
    run_maker("b")
    collect()
    shutil.rmtree(shutil_target)
    assert collect().gone == 1
    assert runs()["name"].tolist() == ["b"]
    assert set(history()["run"]) == {"multirun/quickstart/nano/adamw/b"}


def test_collecting_one_root_leaves_the_runs_of_others(run_maker) -> None:
    run_maker("a", sweep="one")
    run_maker("b", sweep="two")
    collect()
    shutil.rmtree("multirun/one")
    assert collect(["multirun/two"]).gone == 0
    assert runs()["sweep"].tolist() == ["one", "two"]
    assert collect(["multirun"]).gone == 1


def test_hostile_names_write_nowhere_else(place: Path, problems, bare) -> None:
    records = [RECORD | {"stream": s} for s in ("../../out", "..", "a/b", "", "x" * 300, "\ud800")]
    metrics = "".join(json.dumps(r) + "\n" for r in records)
    plan = {"sweep": "s", "runs": [{"directory": "../../../etc"}, 5]}
    bare("multirun/s/.sweep", plan_json=json.dumps(plan))
    bare("outputs/a", run_json='{"name": "../../x"}', metrics_jsonl=metrics)
    os.symlink("/etc/hostname", "outputs/a/status.json")
    os.symlink("..", "outputs/a/loop")
    collect()
    assert sorted(os.listdir()) == ["multirun", "outputs", "store"]
    assert sorted(os.listdir("store/history")) == ["%2E.", "%2E.%2F..%2Fout", "a%2Fb"]
    assert len(history("../../out")) == 1
    details = [detail for _, detail in problems()]
    assert "no regular file" in details
    assert details.count("a run has no directory inside the sweep") == 2


def test_an_unreadable_file_is_a_problem_and_is_tried_again(
    run_maker, monkeypatch, problems
) -> None:
    run_maker("a")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("analysis.collecting.bucket.read_metrics", refuse)
        collect()
    assert problems() == [("unreadable", "Permission denied")]
    collect()
    assert problems() == []
    assert len(history()) == 10


def test_processes_give_the_same_store_as_none(run_maker, monkeypatch) -> None:
    monkeypatch.setattr("analysis.collecting.update.RUNS_PER_BUCKET", 2)
    for number in range(5):
        run_maker(f"r{number}", lr=number / 10)
    collect(workers=2)
    assert len(list(Path("store/runs").iterdir())) == 3
    parallel = runs(all_columns=True), history()
    shutil.rmtree("store")
    collect(workers=1)
    pd.testing.assert_frame_equal(parallel[0], runs(all_columns=True))
    pd.testing.assert_frame_equal(parallel[1], history())


def test_a_bucket_that_outgrows_its_size_is_split(run_maker, monkeypatch) -> None:
    paths = [run_maker(f"r{number}", steps=2) for number in range(4)]
    collect()
    monkeypatch.setattr("analysis.collecting.update.BYTES_PER_BUCKET", 20_000)
    for path in paths:
        with Run(path) as run:
            for step in range(200):
                run.log("train", step, loss=1.0)
    collect()
    assert len(list(Path("store/history/train").iterdir())) > 1
    assert len(history()) == 800
    assert counts(collect()) == (0, 0, 4)


def test_without_processes_it_collects_alone_and_says_so(run_maker, monkeypatch, capsys) -> None:
    monkeypatch.setattr("analysis.collecting.update.RUNS_PER_BUCKET", 1)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("multiprocessing.context.SpawnContext.Lock", refuse)
    monkeypatch.setattr("multiprocessing.context.SpawnContext.SimpleQueue", refuse)
    for name in "ab":
        run_maker(name)
    assert counts(collect(workers=2)) == (2, 0, 0)
    told = "collecting in this process alone; no others can be started: Permission denied\n"
    assert capsys.readouterr().err == told
