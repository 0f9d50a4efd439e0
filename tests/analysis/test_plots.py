"""The figures: what is drawn, with which labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.collecting.collector import collect
from rundir import Diverged, UserError


@pytest.fixture
def store(sweep_place: Path) -> Path:
    collect()
    return sweep_place / "store"


def test_loss_curves_show_every_run_best_first_and_mark_divergence(store: Path) -> None:
    from analysis.plots import loss_curves

    axes = loss_curves("quickstart", stream="train").axes[0]
    assert axes.get_ylabel() == "training loss (nats per token)"
    assert axes.get_xlabel() == "optimizer step"
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == [
        "muon, lr 0.001: 1.510",
        "muon, lr 0.01: 1.600",
        "adamw, lr 0.01: 1.900",
        "adamw, lr 0.001: 1.990",
        "muon, lr 1: failed",
        "adamw, lr 1: diverged",
    ]
    thick = [line.get_label() for line in axes.lines if line.get_linewidth() > 2]
    assert sorted(thick) == ["adamw, lr 0.01: 1.900", "muon, lr 0.001: 1.510"]
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [line.get_xdata()[0] for line in crosses] == [5]


def test_sensitivity_is_on_a_log_axis_with_crosses_where_nothing_converged(store: Path) -> None:
    from analysis.plots import lr_sensitivity_plot

    axes = lr_sensitivity_plot("quickstart").axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "final validation loss (nats per token)"
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["adamw: 1.900 at 0.01", "muon: 1.510 at 0.001", "diverged"]
    crosses = [line for line in axes.lines if line.get_marker() == "X" and len(line.get_xdata())]
    assert [line.get_xdata()[0] for line in crosses] == [1.0]


def test_many_runs_get_a_legend_of_groups(run_maker) -> None:
    from analysis.plots import loss_curves

    for number in range(14):
        run_maker(
            f"r{number}", lr=0.1 * (number + 1), loss=lambda step, n=number: 3.0 + n - step / 9
        )
    collect()
    axes = loss_curves().axes[0]
    assert len(axes.lines) == 14
    assert len(axes.get_legend().get_texts()) == 1


def test_more_groups_than_colours_get_a_panel_each_the_best_first(run_maker) -> None:
    from analysis.plots import lr_sensitivity_plot
    from rundir import Diverged

    for number in range(8):
        for lr in (0.001 * 2**number, 0.01 * 2**number, 0.1 * 2**number):
            run_maker(
                f"o{number}-{lr}",
                optimizer=f"o{number}",
                lr=lr,
                loss=lambda step, n=number, lr=lr: 9.0 - n - 0.1 * step - lr,
                error=Diverged("nan") if number == 7 or lr == 0.1 else None,
            )
    collect()
    figure = lr_sensitivity_plot()
    titles = [axes.get_title() for axes in figure.axes]
    # The last but one is best: 9 - 6 - 0.1 * 10 steps - lr 6.4; the last came through nowhere.
    assert titles[0] == "o6: -4.400"
    assert titles[-2:] == ["o0: 7.990", "o7: none completed"]
    assert figure.get_supxlabel() == "learning rate"
    assert figure.get_supylabel() == "final validation loss (nats per token)"
    spans = {round(axes.get_xlim()[1] / axes.get_xlim()[0], 6) for axes in figure.axes}
    assert len(spans) == 1
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    ticks = [text.get_text() for text in figure.axes[-2].get_xticklabels()]
    assert ticks == ["0.001", "0.01", "0.1"]
    crosses = [
        sum(line.get_marker() == "X" for line in axes.lines)
        for axes in (figure.axes[0], *figure.axes[-2:])
    ]
    assert crosses == [0, 1, 3]


def test_plotting_leaves_no_global_state(store: Path) -> None:
    import matplotlib as mpl
    from matplotlib._pylab_helpers import Gcf

    from analysis.plots import save_plots

    before = dict(mpl.rcParams)
    paths = save_plots("quickstart", Path("plots"))
    names = ["loss_curves", "lr_sensitivity", "tuned_curves", "wall_clock"]
    assert [path.stem for path in paths] == names
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths)
    for form, start in (("pdf", b"%PDF"), ("svg", b"<?xml")):
        files = save_plots("quickstart", Path("plots"), form=form)
        assert [path.name for path in files] == [f"{name}.{form}" for name in names]
        assert all(path.read_bytes().startswith(start) for path in files)
    assert "validation loss (nats per token)" in Path("plots/loss_curves.svg").read_text()
    assert dict(mpl.rcParams) == before
    assert not Gcf.figs


def test_nothing_finite_to_draw_is_said(run_maker) -> None:
    from analysis.plots import loss_curves, lr_sensitivity_plot

    run_maker("a", loss=lambda _: float("nan"))
    collect()
    with pytest.raises(UserError) as caught:
        loss_curves()
    assert str(caught.value) == "metric = val.loss; must have finite values; no run has any"
    with pytest.raises(UserError, match=r"final.val.loss; must have values of completed runs"):
        lr_sensitivity_plot()


@pytest.fixture
def tuned(run_maker) -> Path:
    """Two optimizers at two rates with two seeds, and what the train stream logs for figures."""
    for optimizer, gain in (("adamw", 0.0), ("muon", 0.5)):
        for lr in (0.01, 0.1):
            for seed in range(2):
                directory = run_maker(
                    f"{optimizer}-{lr}-{seed}",
                    optimizer=optimizer,
                    config={"optimizer": {"name": optimizer, "lr": lr}, "seed": seed},
                    overrides=[f"optimizer={optimizer}", f"optimizer.lr={lr}", f"seed={seed}"],
                    loss=lambda step, g=gain, lr=lr, s=seed: 4 - g - lr + 0.02 * s - 0.1 * step,
                )
                lines = (directory / "metrics.jsonl").read_text().splitlines()
                with (directory / "metrics.jsonl").open("w") as file:
                    for line in lines:
                        record = json.loads(line)
                        record["t"] = 100.0 + 2 * record["step"] * (1 + gain)
                        if record["stream"] == "train":
                            record |= {"lr": lr / record["step"], "tokens": 64 * record["step"]}
                            if optimizer == "muon":
                                record["step_size"] = lr * record["step"]
                        file.write(json.dumps(record) + "\n")
    collect()
    return Path("store")


def labels(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_tuned_curves_are_means_over_the_seeds_of_the_best_rate(tuned: Path) -> None:
    from analysis.plots import tuned_curves_plot

    axes = tuned_curves_plot(stream="train").axes[0]
    assert labels(axes) == ["muon, lr 0.1: 2.410 (n = 2)", "adamw, lr 0.1: 2.910 (n = 2)"]
    assert axes.lines[0].get_ydata().tolist()[-1] == pytest.approx(2.41)
    assert axes.lines[0].get_xdata().tolist() == list(range(1, 11))
    assert len(axes.collections) == 2
    assert axes.get_xlabel() == "optimizer step"


def test_an_optimizer_has_one_colour_in_every_figure(store: Path) -> None:
    from analysis.plots import loss_curves, lr_sensitivity_plot, tuned_curves_plot

    figures = [loss_curves("quickstart"), lr_sensitivity_plot("quickstart")]
    figures.append(tuned_curves_plot("quickstart"))
    for optimizer, color in (("adamw", "#0072B2"), ("muon", "#D55E00")):
        for axes in (figure.axes[0] for figure in figures):
            handles, names = axes.get_legend_handles_labels()
            mine = [h for h, name in zip(handles, names, strict=True) if name.startswith(optimizer)]
            lines = [getattr(handle, "lines", (handle,))[0] for handle in mine]
            assert color in {line.get_color() for line in lines}


@pytest.mark.parametrize(
    ("x", "label", "places"),
    [
        ("tokens", "tokens seen", [64, 640]),
        # Two seconds a step, half as many again for Muon, from the first record on.
        ("seconds", "training time (s)", [0, 27]),
    ],
)
def test_curves_run_over_tokens_or_time(tuned: Path, x: str, label: str, places) -> None:
    from analysis.plots import tuned_curves_plot

    axes = tuned_curves_plot(stream="train", x=x).axes[0]
    data = axes.lines[0].get_xdata()
    assert [data[0], data[-1]] == pytest.approx(places)
    assert axes.get_xlabel() == label


def test_wall_clock_puts_validations_between_training_steps(tuned: Path) -> None:
    from analysis.plots import wall_clock

    lines = wall_clock().axes[0].lines
    assert [line.get_xdata().tolist() for line in lines] == [[27.0], [18.0]]


def test_schedules_and_step_sizes_have_a_line_where_they_are_logged(tuned: Path) -> None:
    from analysis.plots import schedules, step_sizes

    axes = schedules().axes[0]
    assert axes.get_ylabel() == "learning rate"
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.1 / s for s in range(1, 11)])
    axes = step_sizes().axes[0]
    assert axes.get_yscale() == "log"
    assert labels(axes) == ["muon, lr 0.1: 2.410 (n = 2)"]


def test_time_between_attempts_does_not_count() -> None:
    from analysis.tuning import elapsed

    rows = pd.DataFrame(
        {"t": [10.0, 12.0, 500.0, 503.0, 505.0], "attempt": [1, 1, 2, 2, 2], "step": range(5)}
    ).astype({"t": "double[pyarrow]", "attempt": "int64[pyarrow]"})
    assert elapsed(rows).tolist() == [0, 2, 2, 5, 7]
    untimed = rows.assign(t=pd.Series([None] * 5, dtype="double[pyarrow]"), step_time=[2.0] * 5)
    assert elapsed(untimed.astype({"step_time": "double[pyarrow]"})).tolist() == [2, 4, 6, 8, 10]


def test_more_groups_than_colours_get_a_panel_of_curves_each(run_maker) -> None:
    from analysis.plots import loss_curves

    for number in range(8):
        for lr in (0.001, 0.01):
            run_maker(
                f"o{number}-{lr}",
                optimizer=f"o{number}",
                lr=lr,
                loss=lambda step, n=number, lr=lr: 9.0 - n - 0.1 * step - lr,
            )
    collect()
    figure = loss_curves(stream="train")
    assert [axes.get_title() for axes in figure.axes][:2] == ["o7: 0.990", "o6: 1.990"]
    # Two runs, and the best of all.
    assert [len(axes.lines) for axes in figure.axes] == [3] * 8
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert figure.get_supylabel() == "training loss (nats per token)"


@pytest.mark.parametrize(("peak", "scale"), [(0.3, "linear"), (3.0, "log")])
def test_schedules_are_whole_however_far_their_peaks_are_apart(
    run_maker, peak: float, scale: str
) -> None:
    from analysis.plots import schedules

    for optimizer, highest in (("adamw", 0.1), ("muon", peak)):
        directory = run_maker(optimizer, optimizer=optimizer, steps=0, lr=highest)
        lines = [
            {"stream": "train", "step": step, "attempt": 1, "t": 1.0, "loss": 2.0}
            | {"lr": highest * (1 - step / 400) if step > 4 else highest / 20}
            for step in range(1, 200, 4)
        ]
        lines += [{"stream": "val", "step": 199, "attempt": 1, "t": 1.0, "loss": 2.0}]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / "metrics.jsonl").write_text(text)
    collect()
    axes = schedules().axes[0]
    bottom, top = axes.get_ylim()
    values = np.concatenate([np.asarray(line.get_ydata()) for line in axes.lines])
    assert axes.get_yscale() == scale
    assert len(axes.lines) == 2
    assert bottom <= values.min()
    assert values.max() <= top


def test_a_tuned_curve_says_how_many_of_its_seeds_diverged(run_maker) -> None:
    from analysis.plots import tuned_curves_plot

    for seed in range(3):
        asked = ["optimizer=muon", f"seed={seed}"]
        error = Diverged("nan") if seed == 2 else None
        run_maker(f"s{seed}", optimizer="muon", seed=seed, overrides=asked, error=error)
    run_maker("other", optimizer="adamw", overrides=["optimizer=adamw", "seed=0"], loss=lambda _: 9)
    collect()
    shown = labels(tuned_curves_plot().axes[0])
    assert shown == ["muon: 3.000 (n = 2, 1 diverged)", "adamw: 9.000"]
