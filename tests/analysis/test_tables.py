"""The tables: what varies, under which name, and what a user's mistake is answered with."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import best, diff, history, lr_sensitivity, runs
from analysis.collecting.collector import collect
from analysis.settings import short_names
from rundir import UserError


@pytest.fixture
def store(sweep_place: Path) -> Path:
    collect()
    return sweep_place / "store"


def test_only_what_varies_is_a_column_and_under_its_short_name(store: Path) -> None:
    names = list(runs())
    assert names[:8] == ["run", "sweep", "index", "name", "optimizer", "lr", "betas", "momentum"]
    assert "seed" not in names
    assert "config.seed" in runs(all_columns=True)


def test_what_cannot_change_a_result_is_no_column(run_maker) -> None:
    for number, name in enumerate("ab"):
        free = dict.fromkeys(("check", "cluster", "dry_run", "logging", "paths", "sweep"), name)
        run_maker(name, config={**free, "task": f"package.{name}", "lr": number})
    collect()
    names = list(runs())
    assert [name for name in names if name.startswith("config.")] == ["config.task"]
    assert "lr" in names
    assert not {"check", "cluster", "dry_run", "logging", "paths"} & set(names)


def test_asking_for_what_the_others_have_anyway_makes_nothing_vary(run_maker) -> None:
    for number, name in enumerate("ab"):
        asked = [f"lr={number}", *(["width=200"] if name == "a" else [])]
        run_maker(name, config={"lr": number, "width": 200}, overrides=asked)
    collect()
    assert "lr" in list(runs())
    assert "width" not in list(runs())


def test_a_group_choice_and_the_name_in_its_config_are_one_column(store: Path) -> None:
    table = runs()
    assert sorted(table["optimizer"].unique()) == ["adamw", "muon"]
    assert not [name for name in table if "optimizer_params" in name]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["optimizer.optimizer_params.lr"], ["lr"]),
        (["optimizer.optimizer_params.name"], ["optimizer"]),
        (["model.config.n_layer", "seed"], ["n_layer", "seed"]),
        (["a.lr", "b.lr"], ["a.lr", "b.lr"]),
        (["data.name", "model.name"], ["data", "model"]),
        (["training.steps"], ["training.steps"]),
        (["name"], ["config.name"]),
    ],
)
def test_short_names_are_unambiguous(paths: list[str], names: list[str]) -> None:
    assert list(short_names(paths).values()) == names


def test_history_reads_one_metric_of_one_sweep(store: Path, run_maker) -> None:
    run_maker("other", sweep="second")
    collect()
    table = history("train", "quickstart", "loss")
    assert list(table) == ["run", "step", "loss"]
    assert len(table) == 53
    assert len(history("train", "second")) == 10
    assert set(history("val", runs=[table["run"][0]])["run"]) == {table["run"][0]}


def test_numbers_keep_nan_apart_from_absent(store: Path) -> None:
    finals = runs().set_index("name")["final.train.loss"]
    assert math.isnan(finals["a-1"])
    assert finals.isna().to_dict()["a-1"] is False
    assert finals.isna().to_dict()["m-0.1"] is True


def test_best_orders_runs_and_picks_one_per_setting(store: Path) -> None:
    assert best()["name"].tolist()[:2] == ["m-0.001", "m-0.01"]
    chosen = best(per="optimizer")
    assert chosen["name"].tolist() == ["m-0.001", "a-0.01"]


def test_diff_shows_config_and_packages(store: Path, run_maker) -> None:
    run_maker("newer", optimizer="muon", lr=0.001, packages={"torch": "9"})
    collect()
    table = diff("multirun/quickstart/nano/muon/m-0.001", "newer")
    assert table.to_dict("index") == {"packages.torch": {"a": '"2.13.0"', "b": '"9"'}}
    table = diff("a-0.001", "m-0.001")
    assert table["a"]["optimizer.optimizer_params.betas"] == "[0.9, 0.95]"
    assert table["b"].isna()["optimizer.optimizer_params.betas"]


def test_sensitivity_counts_what_it_does_not_average(store: Path) -> None:
    table = lr_sensitivity().set_index(["optimizer", "lr"])
    assert table["n"].tolist() == [1, 1, 0, 1, 1, 0, 0]
    assert table.loc[("adamw", 1.0), "diverged"] == 1
    assert table.loc[("muon", 1.0), "other"] == 1
    assert table.loc[("muon", 0.001), "mean"] == pytest.approx(1.51)


def test_seeds_are_averaged(run_maker) -> None:
    for seed, shift in enumerate((0.0, 0.5, 1.0)):
        config = {"optimizer": {"name": "sgd", "lr": 0.1}, "seed": seed}
        run_maker(f"s{seed}", config=config, overrides=[f"seed={seed}"], loss=lambda _, s=shift: s)
    collect()
    row = lr_sensitivity().iloc[0]
    assert (row["n"], row["mean"], row["std"]) == (3, 0.5, 0.5)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: runs("quickstrat"),
            "unknown sweep quickstrat; must be one of: quickstart; did you mean quickstart?",
        ),
        (
            lambda: history("valid"),
            "unknown stream valid; must be one of: train, val; did you mean val?",
        ),
        (
            lambda: history(metrics="los"),
            (
                "unknown metric los in stream train; must be one of: loss, tokens_per_second; "
                "did you mean loss?"
            ),
        ),
        (
            lambda: best("val.los"),
            "unknown metric val.los; must be one of: train.loss, val.loss; did you mean val.loss?",
        ),
        (
            lambda: diff("a-0.0001", "m-0.001"),
            "run = a-0.0001; is none of the 7 runs in the store; did you mean a-0.001?",
        ),
        (
            lambda: runs(store="nowhere"),
            "store = nowhere; holds no manifest.json; run: python -m analysis collect",
        ),
    ],
)
def test_a_mistake_is_answered_with_the_legal_names(store: Path, call, text: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value) == text
    assert caught.value.exit_code == 2


def test_a_sweep_may_be_given_by_its_directory(store: Path) -> None:
    assert len(runs("multirun/quickstart/")) == len(runs("quickstart")) == 7


def test_a_name_of_several_runs_is_refused(store: Path, run_maker) -> None:
    run_maker("a-0.001", sweep="second")
    collect()
    with pytest.raises(
        UserError, match=r"run = a-0\.001; is the name of 2 runs: multirun/quickstart"
    ):
        diff("a-0.001", "m-0.001")


def test_importing_the_tables_loads_neither_torch_nor_hydra_nor_matplotlib() -> None:
    code = (
        "import sys; from analysis import runs, history, best, diff, lr_sensitivity\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'submitit', 'matplotlib', 'trainer', 'sweeps'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_finding_nothing_new_loads_neither_arrow_nor_rich(run_maker) -> None:
    run_maker("a")
    collect()
    code = (
        "import sys; from analysis.__main__ import main\n"
        "assert main(['collect']) == 0\n"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'rich', 'yaml'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    told = done.stderr.splitlines()
    assert len(told) == 1
    assert told[0].startswith("store: 0 new, 0 changed, 1 unchanged, 0 problems")


def test_collecting_loads_no_pandas_and_every_table_function_is_there() -> None:
    code = (
        "import sys, analysis, analysis.refresh, analysis.__main__\n"
        "assert 'pandas' not in sys.modules\n"
        "assert set(analysis.__all__) <= set(dir(analysis))\n"
        "functions = [getattr(analysis, name) for name in analysis.__all__]\n"
        "assert all(callable(f) and f.__doc__ for f in functions)\n"
        "assert not hasattr(analysis, 'run')\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
