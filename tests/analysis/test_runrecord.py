"""What a run directory says of itself: Hydra's own files, damaged ones and hostile ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from analysis import runs
from analysis.collecting.collector import collect
from analysis.parquet.parts import read_problems


def test_foreign_hydra_directories_are_rows_with_config_and_overrides(place: Path, bare) -> None:
    bare("multirun/2024-01-01/10-00-00", multirun_yaml="hydra: {}\n")
    bare(
        "multirun/2024-01-01/10-00-00/0",
        **{".hydra__config_yaml": "lr: 0.1\nnet: {width: 3}\n"},
        **{".hydra__overrides_yaml": "- lr=0.1\n"},
    )
    collect()
    row = runs(all_columns=True).iloc[0]
    assert row["run"] == "multirun/2024-01-01/10-00-00/0"
    assert row["sweep"] == "multirun/2024-01-01/10-00-00".partition("/")[2]
    assert (row["config.lr"], row["config.net.width"]) == (0.1, 3)
    assert json.loads(row["overrides"]) == ["lr=0.1"]
    assert pd.isna(row["state"])


def test_hostile_yaml_executes_nothing(place: Path, bare) -> None:
    evil = "!!python/object/apply:os.system ['touch executed']\n"
    bombs = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(9)
    )
    for name, text in {
        "evil": evil,
        "bomb": bombs,
        "self": "a: &a [*a]\n",
        "bad": "a: [\n",
    }.items():
        bare(f"outputs/{name}", **{".hydra__config_yaml": text})
    collect()
    assert not Path("executed").exists()
    assert len(runs()) == 4
    found = dict(sorted((r["run"], r["detail"]) for r in read_problems(Path("store")).to_pylist()))
    assert found["outputs/evil"].startswith("not plain YAML: could not determine a constructor")
    assert found["outputs/bomb"] == "more than 100000 values"
    assert found["outputs/self"] == "nested too deeply"
    assert found["outputs/bad"].startswith("not plain YAML")


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000, '{"version": 99}'])
def test_a_damaged_run_json_is_a_problem_and_still_a_row(
    place: Path, text: str, problems, bare
) -> None:
    bare("outputs/a", run_json=text)
    collect()
    assert runs()["name"].tolist() == ["a"]
    assert len(problems()) >= 1


def test_values_of_the_wrong_type_are_problems(place: Path, problems, bare) -> None:
    status = {"version": 1, "state": "winning", "attempt": "two", "step": 2**70, "reason": ["x"]}
    bare("outputs/a", run_json='{"config": {"n": 1}}', status_json=json.dumps(status))
    collect()
    assert [detail for _, detail in problems()] == [
        "reason = ['x']; must be string",
        "attempt = 'two'; must be int64",
        f"steps = {2**70}; must be int64",
        "state = winning; no state of a run",
    ]


def test_a_record_gives_versions_and_what_the_last_attempt_ran_on(place: Path, bare) -> None:
    attempts = [
        {"attempt": 1, "host": "old", "threads": 1},
        {"attempt": 2, "host": "node7", "cores": 16, "threads": 4, "slurm": {"job_id": "12"}},
    ]
    record = {"python": "3.11.9", "packages": {"torch": "2.9"}, "attempts": attempts}
    bare("outputs/a", run_json=json.dumps(record))
    collect()
    row = runs(all_columns=True).iloc[0]
    assert (row["python"], json.loads(row["packages"])) == ("3.11.9", {"torch": "2.9"})
    assert (row["host"], row["threads"], row["job"], row["attempts"]) == ("node7", 4, "12", 2)


TRAP = b"cos\nsystem\n(S'touch executed'\ntR."
"""A pickle that runs a command when it is loaded."""


def test_what_lies_in_a_run_directory_is_neither_run_nor_followed(place: Path, bare) -> None:
    outside = place / "outside"
    (outside / "secret").mkdir(parents=True)
    (outside / "secret/run.json").write_text('{"name": "secret"}')
    directory = bare("outputs/a", run_json='{"name": "../../up", "sweep": "../../../sweep"}')
    for name in ("checkpoint.pt", "checkpoints/x.pkl", "results-1.pickle", "data.npy"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(TRAP)
    (directory / "inner").symlink_to(outside, target_is_directory=True)
    (directory / "metrics.jsonl").symlink_to(outside / "secret/run.json")
    (place / "outputs/linked").symlink_to(outside / "secret", target_is_directory=True)
    linked = bare("outputs/b", status_json="{}")
    (linked / ".hydra").symlink_to(outside, target_is_directory=True)
    os.mkfifo(linked / "metrics.jsonl")
    bare("outputs/c", **{".hydra__config_yaml": "!!python/object/new:os.system [touch executed]"})
    (place / "outputs/c/adamw-1.json").symlink_to("/etc/passwd")
    before = {path: path.lstat().st_mtime_ns for path in place.rglob("*")}
    collect()
    after = {path: path.lstat().st_mtime_ns for path in place.rglob("*")}
    written = {path for path in after if before.get(path) != after[path]}
    assert {path.relative_to(place).parts[0] for path in written} == {"store"}
    assert runs()["run"].tolist() == ["outputs/a", "outputs/b", "outputs/c"]
    assert not any("secret" in str(value) for value in runs(all_columns=True).iloc[0])
    refused = [(r["run"], r["file"]) for r in read_problems(Path("store")).to_pylist()]
    assert ("outputs/a", "metrics.jsonl") in refused
    assert ("outputs/b", "metrics.jsonl") in refused
    assert ("outputs/c", "adamw-1.json") in refused
