"""What all figures share: colours, sizes, units, legends. Nothing here is global to matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.settings import describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Palette of Okabe and Ito (2008), without its yellow, which is faint on white."""

UNITS = {
    "val.loss": "validation loss (nats per token)",
    "train.loss": "training loss (nats per token)",
    "lr": "learning rate",
    "step": "optimizer step",
    "seconds": "training time (s)",
    "step_size": "step size",
    "grad_norm": "gradient norm",
    "step_time": "time per step (s)",
    "tokens_per_second": "throughput (tokens per second)",
    "tokens": "tokens seen",
    "mfu": "share of the device's peak FLOP/s",
    "memory": "peak memory (bytes)",
}

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.solid_capstyle": "round",
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


def new_figure() -> tuple[Figure, Axes]:
    """Return a figure as wide as a page's text, with one pair of axes, made without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.7), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def limit(axes: Axes, values: pd.Series, *, reach: float = 4, room: float = 1) -> None:
    """Keep a spike of one run from flattening the others.

    Args:
        axes: cut off above.
        values: what is drawn; the least is always in view.
        reach: how far above the median, in units of its distance from the least value.
        room: left above that, in twentieths of what is in view.
    """
    numbers = values.astype("float64").to_numpy()
    numbers = numbers[np.isfinite(numbers)]
    low, middle = numbers.min(), np.median(numbers)
    top = min(numbers.max(), middle + reach * max(middle - low, 1e-3 * abs(middle), 1e-12))
    margin = 0.05 * (top - low) or 0.05 * abs(low) or 1.0
    axes.set_ylim(low - margin, top + room * margin)


def add_legend(axes: Axes, *, outside: bool) -> None:
    """Add a legend of what has a label, in the order of the lines' gid, to the right if outside."""
    handles, labels = axes.get_legend_handles_labels()
    pairs = sorted(
        zip(handles, labels, strict=True),
        key=lambda pair: getattr(pair[0], "get_gid", lambda: "")() or "",
    )
    if not pairs:
        return
    handles, labels = [h for h, _ in pairs], [name for _, name in pairs]
    if outside:
        axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        axes.legend(handles, labels, loc="best")


def axis_label(metric: str) -> str:
    """Return the axis label of ``final.val.loss``, ``val.loss`` or ``loss``."""
    kind, _, rest = metric.partition(".")
    name = rest if kind in {"final", "best"} else metric
    text = UNITS.get(name) or UNITS.get(name.rpartition(".")[2]) or name
    return f"{kind} {text}" if kind in {"final", "best"} else text


def labels_of(table: pd.DataFrame, columns: list[str]) -> list[str]:
    """Tell each row by these columns, of which there may be none."""
    # Before version 3, pandas makes no records of rows without columns.
    records = table[columns].to_dict("records") or [{}] * len(table)
    return [describe(row, columns) for row in records]
