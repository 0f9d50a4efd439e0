"""Groups over seeds, the verdict between them, and what a measure depends on."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from analysis import (
    aggregate,
    compare,
    heatmap,
    importance,
    lr_sensitivity,
    parallel,
    rerun_command,
    runs,
)
from analysis.collecting.collector import collect
from analysis.statistics import holm
from rundir import Diverged, UserError


@pytest.fixture
def seeded(run_maker) -> Path:
    """Two optimizers at two rates with three seeds each; AdamW at 0.1 diverges in one of them."""
    for optimizer, gain in (("adamw", 0.0), ("muon", 0.2)):
        for lr in (0.01, 0.1):
            for seed, shift in enumerate((0.0, 0.3, 0.1)):
                end = 3.0 + shift - gain - lr + 0.01 * seed * (optimizer == "muon")
                fails = (optimizer, lr, seed) == ("adamw", 0.1, 2)
                overrides = [f"optimizer={optimizer}", f"optimizer.lr={lr}", f"seed={seed}"]
                run_maker(
                    f"{optimizer}-{lr}-{seed}",
                    optimizer=optimizer,
                    config={"optimizer": {"name": optimizer, "lr": lr}, "seed": seed},
                    overrides=overrides,
                    loss=lambda step, end=end, fails=fails: (
                        math.nan if fails else end + 0.1 * (10 - step)
                    ),
                    error=Diverged("nan") if fails else None,
                )
    collect()
    return Path("store")


def test_groups_differ_in_more_than_the_seed_and_come_best_first(seeded: Path) -> None:
    table = aggregate()
    assert list(table) == [
        *("optimizer", "lr", "n", "mean", "std", "low", "high", "min", "max", "diverged", "other")
    ]
    assert table["optimizer"].tolist() == ["muon", "muon", "adamw", "adamw"]
    assert table["lr"].tolist() == [0.1, 0.01, 0.1, 0.01]
    assert table["n"].tolist() == [3, 3, 2, 3]
    assert table["diverged"].tolist() == [0, 0, 1, 0]
    best = table.iloc[0]
    values = [2.7, 3.01, 2.82]
    assert best["mean"] == pytest.approx(sum(values) / 3)
    # Interval of three values: t(0.975, 2) = 4.302653.
    half = 4.302653 * best["std"] / math.sqrt(3)
    assert best["high"] - best["mean"] == pytest.approx(half, rel=1e-6)
    assert best["mean"] - best["low"] == pytest.approx(half, rel=1e-6)
    assert table.attrs["metric"] == "final.val.loss"
    assert {str(table[n].dtype) for n in ("mean", "low")} == {"double[pyarrow]"}


def test_one_run_has_a_mean_and_no_interval(run_maker) -> None:
    run_maker("a")
    collect()
    row = aggregate().iloc[0]
    assert (row["n"], row["mean"]) == (1, 3.0)
    assert aggregate()[["std", "low", "high"]].isna().all(axis=None)


def test_what_varies_beside_the_seed_still_tells_groups_apart(run_maker) -> None:
    for seed, warmup in enumerate((0, 0, 5)):
        run_maker(f"r{seed}", config={"warmup": warmup, "seed": seed}, overrides=[f"seed={seed}"])
    collect()
    assert aggregate()[["warmup", "n"]].to_numpy().tolist() == [[0, 2], [5, 1]]


def test_a_measure_may_be_the_best_or_that_at_a_step(seeded: Path) -> None:
    final, at_four = aggregate(), aggregate("at_4.train.loss")
    assert at_four["mean"].tolist() == pytest.approx((final["mean"] + 0.6).tolist())
    assert aggregate("best.train.loss")["mean"].tolist() == pytest.approx(final["mean"].tolist())
    assert aggregate("at_11.train.loss")["n"].tolist() == [0, 0, 0, 0]
    # A run that diverged stays in the count, whatever step is asked for.
    assert at_four["diverged"].sum() == 1


def test_the_best_group_beats_by_paired_seeds(seeded: Path) -> None:
    table = compare(level=0.05)
    assert table["a"].unique().tolist() == ["muon, lr 0.1"]
    assert table["b"].tolist() == ["muon, lr 0.01", "adamw, lr 0.1", "adamw, lr 0.01"]
    assert table["test"].tolist() == ["none", "paired t", "paired t"]
    assert table["reason"][0] == "the runs of each side are all alike"
    assert table["n_b"].tolist() == [3, 2, 3]
    assert table["diverged_b"].tolist() == [0, 1, 0]
    assert table["beats"].tolist() == [False, True, True]
    assert (table["p_adjusted"].dropna() >= table["p"].dropna()).all()
    strict = compare(level=1e-6)
    assert not strict["beats"].any()
    assert strict["reason"].str.contains("must be below 1e-06").sum() == 2


def test_one_lucky_run_does_not_stand_for_the_best(seeded: Path, run_maker) -> None:
    config = {"optimizer": {"name": "adamw", "lr": 1.0}, "seed": 0}
    asked = ["optimizer=adamw", "optimizer.lr=1.0", "seed=0"]
    run_maker("lucky", config=config, overrides=asked, loss=lambda _: 0.1)
    collect()
    table = compare(per="optimizer")
    assert table[["a", "b"]].to_numpy().tolist() == [["muon, lr 0.1", "adamw, lr 0.1"]]
    last = compare().iloc[-1]
    assert (last["a"], last["b"], last["n_b"]) == ("muon, lr 0.1", "adamw, lr 1", 1)
    assert last["reason"] == "needs two runs a side"


def test_the_choice_of_the_best_costs_as_much_as_the_number_of_the_rest(seeded: Path) -> None:
    table = compare()
    p = table["p"].dropna().tolist()
    # Of four groups any could have been the best; two of the three tests have an answer.
    expected = [4 * value for value in holm(p)]
    assert table["p_adjusted"].dropna().tolist() == pytest.approx(expected)
    assert table["p_adjusted"].isna().tolist() == [True, False, False]


def test_every_pair_is_compared_as_the_best_is(seeded: Path) -> None:
    best, every = compare(level=0.1), compare(level=0.1, pairs=True)
    assert every[:3].to_dict("records")[1:] == best.to_dict("records")[1:]
    assert every[["a", "b"]].to_numpy().tolist()[3:] == [
        ["muon, lr 0.01", "adamw, lr 0.1"],
        ["muon, lr 0.01", "adamw, lr 0.01"],
        ["adamw, lr 0.1", "adamw, lr 0.01"],
    ]
    assert (every["mean_a"] <= every["mean_b"]).all()
    assert every["reason"].iloc[-1] == "the runs of each side are all alike"


def test_per_setting_only_its_best_group_is_compared(seeded: Path) -> None:
    table = compare(per="optimizer", level=0.05)
    assert table[["a", "b"]].to_numpy().tolist() == [["muon, lr 0.1", "adamw, lr 0.1"]]


def test_a_group_that_never_came_through_is_a_row_too(sweep_place: Path) -> None:
    collect()
    table = compare()
    lost = table[table["n_b"] == 0].set_index("b")
    assert sorted(lost.index) == ["adamw, lr 1", "muon, lr 0.1", "muon, lr 1"]
    assert lost["diverged_b"]["adamw, lr 1"] == 1
    assert lost["mean_b"].isna().all()
    assert set(lost["reason"]) == {"needs two runs a side"}


def test_a_group_that_diverged_in_part_beats_none(run_maker) -> None:
    for seed in range(4):
        for name, loss in (("risky", 1.0), ("safe", 3.0)):
            fails = name == "risky" and seed == 3
            run_maker(
                f"{name}-{seed}",
                config={"optimizer": {"name": name}, "seed": seed},
                overrides=[f"optimizer={name}", f"seed={seed}"],
                loss=lambda _, end=loss + seed * (seed + loss) / 100: end,
                error=Diverged("nan") if fails else None,
            )
    collect()
    row = compare().iloc[0]
    assert (row["a"], row["diverged_a"], bool(row["beats"])) == ("risky", 1, False)
    assert row["reason"] == "1 of its runs diverged"
    assert row["p_adjusted"] < 0.01


def test_the_learning_rate_has_its_interval(seeded: Path) -> None:
    table = lr_sensitivity()
    assert table["n"].tolist() == [3, 2, 3, 3]
    assert (table["low"] < table["mean"]).all()


def test_a_heatmap_tells_diverged_from_missing(sweep_place: Path) -> None:
    collect()
    grid = heatmap()
    assert (grid.index.name, grid.columns.name) == ("optimizer", "lr")
    assert grid.index.tolist() == ["adamw", "muon"]
    assert grid.columns.tolist() == [0.001, 0.01, 0.1, 1.0]
    assert grid.loc["muon", 0.01] == pytest.approx(1.6)
    assert grid.isna().to_numpy().tolist() == [
        [False, False, True, False],
        [False, False, True, True],
    ]
    assert math.isnan(grid.loc["adamw", 1.0])
    turned = heatmap("optimizer", "lr")
    assert turned.loc[0.01, "muon"] == pytest.approx(1.6)


def test_a_heatmap_shows_the_best_over_other_settings(run_maker) -> None:
    for lr in (0.1, 0.2):
        for wd in (0.0, 0.5):
            for warmup in (1, 2):
                run_maker(
                    f"{lr}-{wd}-{warmup}",
                    config={"lr": lr, "wd": wd, "warmup": warmup},
                    overrides=[f"lr={lr}", f"wd={wd}", f"warmup={warmup}"],
                    loss=lambda _, v=lr + wd + warmup: v,
                )
    collect()
    grid = heatmap("lr", "wd")
    assert grid.to_numpy().ravel().tolist() == pytest.approx([1.1, 1.2, 1.6, 1.7])
    assert grid.attrs["best_over"] == ["warmup"]


def test_parallel_coordinates_have_every_run_and_the_best_last(seeded: Path) -> None:
    table = parallel()
    columns = ["run", "optimizer", "lr", "seed", "final.val.loss", "state", "diverged"]
    assert list(table) == columns
    assert len(table) == 12
    assert bool(table["diverged"][0])
    assert table["final.val.loss"].isna().tolist() == [True] + [False] * 11
    assert table["final.val.loss"].iloc[-1] == table["final.val.loss"].min()
    assert table.attrs["scales"] == {"optimizer": "category", "lr": "linear", "seed": "linear"}


def test_importance_finds_what_matters_and_names_its_method(run_maker) -> None:
    for lr in (0.001, 0.01, 0.1):
        for wd in (0.0, 0.1):
            for seed in range(3):
                run_maker(
                    f"{lr}-{wd}-{seed}",
                    config={"lr": lr, "wd": wd, "seed": seed},
                    overrides=[f"lr={lr}", f"wd={wd}", f"seed={seed}"],
                    loss=lambda _, v=10 * lr + 0.001 * ((seed * 7 + int(20 * wd)) % 5): v,
                )
    collect()
    table = importance().set_index("setting")
    assert table.index[0] == "lr"
    assert table["importance"]["lr"] > 0.85
    assert table["importance"]["wd"] == 0
    assert table["levels"].to_dict() == {"lr": 3, "wd": 2, "seed": 3}
    assert table["method"].str.contains("Kruskal-Wallis").all()
    assert (table["explained"] >= table["importance"]).all()


def test_importance_of_sampled_values_is_that_of_ranges_of_them(run_maker) -> None:
    for number in range(32):
        lr = 10 ** (-4 + number / 10)
        config = {"lr": lr, "noise": (number * 0.37) % 1}
        overrides = [f"lr={lr}", f"noise={config['noise']}"]
        run_maker(f"r{number}", config=config, overrides=overrides, loss=lambda _, v=lr: v)
    collect()
    table = importance().set_index("setting")
    assert table["levels"].tolist() == [8, 8]
    assert table["importance"]["lr"] > 0.95
    assert table["importance"]["noise"] < 0.5


def test_diverged_runs_rank_last_in_importance(sweep_place: Path) -> None:
    collect()
    table = importance().set_index("setting")
    # Of five ranked runs the one at lr 1 diverged.
    assert table["n"].tolist() == [5] * len(table)


def test_rerun_command_is_one_that_the_engine_parses(run_maker) -> None:
    directory = run_maker("it's a-0.001")
    collect()
    words = shlex.split(rerun_command("it's a-0.001"))
    assert words == ["python", "-m", "sweeps", "rerun", str(directory)]
    done = subprocess.run(
        [sys.executable, *words[1:], "--help"],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0


def test_rerun_command_of_a_run_that_has_not_started(sweep_place: Path) -> None:
    collect()
    words = shlex.split(rerun_command("m-0.1"))
    assert words == ["python", "launch.py", "optimizer=muon", "optimizer.optimizer_params.lr=0.1"]


def test_another_programs_run_has_no_command(place: Path, bare) -> None:
    bare("outputs/hydra", _hydra__config_yaml="lr: 0.1")
    collect()
    with pytest.raises(UserError, match=r"run = outputs/hydra; was not written by optsweep"):
        rerun_command("outputs/hydra")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: aggregate("final.val.los"), "did you mean final.val.loss?"),
        (lambda: aggregate("state"), "metric = state; must be a column of numbers"),
        (lambda: aggregate("at_5.val.los"), "unknown metric los in stream val"),
        (lambda: aggregate(confidence=1.0), "confidence = 1.0; must be between 0 and 1"),
        (lambda: compare(per="optimiser"), "did you mean optimizer?"),
        (lambda: heatmap("lr", "lr"), "must be two that vary"),
        (lambda: parallel(sweep="quickstrat"), "did you mean quickstart?"),
    ],
)
def test_a_mistake_is_one_line(sweep_place: Path, call, text: str) -> None:
    collect()
    with pytest.raises(UserError) as caught:
        call()
    assert text in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_table_of_a_store_without_settings_still_opens(run_maker) -> None:
    run_maker("a")
    collect()
    assert len(runs()) == len(aggregate()) == len(parallel()) == len(lr_sensitivity()) == 1
    assert len(importance()) == len(compare()) == 0
    with pytest.raises(UserError, match="must be two that vary"):
        heatmap()
