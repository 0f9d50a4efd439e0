"""Runs that optsweep did not write: Hydra's alone, and GPT-opt's with their JSON of lists."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from analysis import history, lr_sensitivity, runs
from analysis.collecting.collector import collect

CONFIG = """\
optimizer: {optimizer_params: {name: adamw, lr: 0.001}}
training: {training_params: {num_epochs: 2}}
logging: {logging_params: {val_step: 2}}
"""
RUN = Path("outputs/gpt-small/shakespeare/adamw/lr-0.001")
LISTS: dict[str, Any] = {
    "name": "adamw-lr-0.001",
    "losses": [5.0, 4.0, 3.5, 3.25, 3.0, 2.5],
    # Two parameter groups, step by step.
    "learning_rates": [0.1, 1.0, 0.2, 2.0, 0.3, 3.0, 0.3, 3.0, 0.2, 2.0, 0.1, 1.0],
    "grad_norms": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5],
    "step_times": [9.0, 0.5, 0.5, 0.5, 0.5, 0.5],
    # Of two epochs of three steps: at step 2, at the end, at 2 again, at the end.
    "val_losses": [4.2, 3.6, 3.1, 2.75],
}


@pytest.fixture
def gptopt(place: Path):
    """Write a run as GPT-opt does, with these lists changed or left out (None)."""

    def write(name: str = "adamw-lr-0.001-3fa9-world1.json", config: str = CONFIG, **lists) -> Path:
        (RUN / ".hydra").mkdir(parents=True, exist_ok=True)
        (RUN / ".hydra/config.yaml").write_text(config)
        overrides = "- optimizer=adamw\n- optimizer.optimizer_params.lr=0.001\n"
        (RUN / ".hydra/overrides.yaml").write_text(overrides)
        content = {k: v for k, v in {**LISTS, **lists}.items() if v is not None}
        (RUN / name).write_text(json.dumps(content))
        return RUN / name

    return write


def test_every_list_becomes_a_metric_at_its_step(gptopt, problems) -> None:
    gptopt(step_size_list=[1.0] * 6)
    collect()
    train = history("train")
    assert train["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert train["loss"].tolist() == LISTS["losses"]
    assert train["lr"].tolist() == [0.1, 0.2, 0.3, 0.3, 0.2, 0.1]
    assert train["lr_1"].tolist() == [1.0, 2.0, 3.0, 3.0, 2.0, 1.0]
    assert train["grad_norm"].tolist() == LISTS["grad_norms"]
    assert train["step_time"].tolist() == LISTS["step_times"]
    assert train["step_size"].tolist() == [1.0] * 6
    assert train["t"].isna().all()
    val = history("val")
    assert val["step"].tolist() == [2, 3, 5, 6]
    assert val["loss"].tolist() == LISTS["val_losses"]
    row = runs(all_columns=True).iloc[0]
    assert (row["final.val.loss"], row["best_step.train.loss"], row["steps"]) == (2.75, 6, 6)
    assert row["config.optimizer.optimizer_params.lr"] == 0.001
    assert json.loads(row["overrides"])[0] == "optimizer=adamw"
    assert lr_sensitivity()["mean"].tolist() == [2.75]
    assert problems() == []


@pytest.mark.parametrize(
    ("epochs", "values", "steps"),
    [
        (1, [4.0, 3.0, 2.0], [2, 4, 6]),
        (1, [4.0, 3.0, 2.0, 1.0], [2, 4, 6]),
        (1, [2.0], [6]),
        (2, [3.0, 2.0], [2, 5]),
    ],
)
def test_validations_fall_on_the_steps_that_gptopt_takes(
    gptopt, problems, epochs: int, values: list[float], steps: list[int]
) -> None:
    gptopt(config=CONFIG.replace("epochs: 2", f"epochs: {epochs}"), val_losses=values)
    collect()
    assert history("val")["step"].tolist() == steps
    # The whole validation set at the end follows the part of it at the same step.
    assert history("val")["loss"].tolist()[-1] == values[-1]
    assert problems() == []


def test_validations_at_unknown_steps_keep_their_order_and_the_last(gptopt, problems) -> None:
    gptopt(config="lr: 1\n")
    collect()
    assert history("val")[["step", "loss"]].to_numpy().tolist() == [[6, 2.75]]
    assert history("val_losses")["value"].tolist() == LISTS["val_losses"]
    assert [kind for kind, _ in problems()] == ["results"]
    assert "kept in the stream val_losses by position" in problems()[0][1]


def test_what_is_not_understood_is_kept_or_named(gptopt, problems) -> None:
    gptopt(
        learning_rates=[0.1] * 7,
        temperatures=[1, 2, 3, 4, 5, 6],
        extra=[1.0],
        train=[1.0],
        note={"a": 1},
    )
    collect()
    assert history("train")["temperatures"].tolist() == [1, 2, 3, 4, 5, 6]
    assert "lr" not in history("train")
    assert history("learning_rates")["value"].tolist() == [0.1] * 7
    assert history("extra")["value"].tolist() == [1.0]
    details = [detail for _, detail in problems()]
    assert "note = {'a': 1}; not understood" in details
    assert "train: is the name of another stream; not read" in details
    assert any(d.startswith("learning_rates has 7 values for 6 steps") for d in details)
    assert any(d.startswith("extra has 1 values for 6 steps") for d in details)


def test_nan_is_a_divergence(gptopt) -> None:
    gptopt(losses=[5.0, 4.0, math.nan, math.nan, math.nan, math.nan], val_losses=[math.nan])
    collect()
    row = runs().iloc[0]
    assert bool(row["diverged"])
    assert math.isnan(row["final.val.loss"])
    assert row["best.train.loss"] == 4.0


def test_the_newest_of_several_files_counts(gptopt, problems) -> None:
    old = gptopt("adamw-lr-0.001-aaaa-world1.json", losses=[9.0] * 6)
    os.utime(old, (1, 1))
    gptopt("adamw-lr-0.001-0000-world2.json")
    collect()
    assert history("train")["loss"].tolist() == LISTS["losses"]
    assert problems() == [("results", "older than adamw-lr-0.001-0000-world2.json, which was read")]


def test_a_file_that_appears_or_changes_is_read_anew(gptopt, problems) -> None:
    file = gptopt()
    file.unlink()
    collect()
    assert runs()["run"].tolist() == [str(RUN)]
    assert problems() == []
    gptopt()
    assert collect().changed == 1
    assert len(history("train")) == 6
    gptopt(**{k: v[: len(v) // 2] for k, v in LISTS.items() if isinstance(v, list)})
    assert collect().changed == 1
    assert len(history("train")) == 3


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes: line 1 column 2"),
        ("[1]", "not a JSON object"),
        ('{"accuracy": [1]}', "holds none of: grad_norms, learning_rates, losses"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_torn_or_foreign_json_is_a_problem(gptopt, problems, content: str, detail: str) -> None:
    gptopt().write_text(content)
    collect()
    ((kind, text),) = problems()
    assert kind == "results"
    assert text.startswith(detail)
    assert len(runs()) == 1


def test_a_link_among_results_leads_nowhere(gptopt, problems, place: Path) -> None:
    target = gptopt()
    target.rename("elsewhere.json")
    target.symlink_to(place / "elsewhere.json")
    collect()
    assert problems() == [("results", "no regular file")]


def test_a_plain_hydra_run_has_config_and_overrides_only(place: Path, bare, problems) -> None:
    bare(
        "multirun/2026-01-01/0",
        _hydra__config_yaml="optimizer: {lr: 0.1}\nseed: ${oc.env:SEED}\n",
        _hydra__overrides_yaml="- optimizer.lr=0.1\n",
        settings_json="{}",
    )
    bare("multirun/2026-01-01", multirun_yaml="x: 1")
    collect()
    row = runs(all_columns=True).iloc[0]
    assert (row["sweep"], row["config.optimizer.lr"]) == ("2026-01-01", 0.1)
    assert row["config.seed"] == "${oc.env:SEED}"
    assert row[["state", "steps", "diverged"]].isna().all()
    assert problems() == []
