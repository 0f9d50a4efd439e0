"""Every figure that a sweep has the metrics for, written to files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.plots.curves import loss_curves
from analysis.plots.rates import lr_sensitivity_plot
from analysis.plots.style import STYLE
from analysis.plots.tuned import schedules, step_sizes, tuned_curves_plot, wall_clock
from analysis.tables import load_runs, rate_column
from rundir.errors import UserError, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMS = ("png", "pdf", "svg")


def save_plots(
    sweep: str | None, out: Path, store: Path | str = "store", form: str = "png"
) -> list[Path]:
    """Write every figure that the sweep has the metrics for, each under its function's name.

    A sweep with one learning rate has no sensitivity to it; step sizes are shown where an optimizer
    logs them.

    Args:
        sweep: name of a sweep, or the path of its directory; every run by default.
        out: directory, created if needed.
        store: directory of the store.
        form: ``png`` (200 dots an inch), ``pdf`` or ``svg``, both with text as text.

    Raises:
        UserError: as the plots, an unknown form, or ``out`` cannot be written.
    """
    import matplotlib as mpl

    require(form in FORMS, "format", form, f"one of: {', '.join(FORMS)}")
    figures = {"loss_curves": loss_curves(sweep, store=store)}
    if len(rate_column(load_runs(sweep, store)).dropna().unique()) > 1:
        figures["lr_sensitivity"] = lr_sensitivity_plot(sweep, store=store)
    more: dict[str, Callable[..., Figure]] = {
        "tuned_curves": tuned_curves_plot,
        "wall_clock": wall_clock,
        "schedules": schedules,
        "step_sizes": step_sizes,
    }
    for name, draw in more.items():
        try:
            figures[name] = draw(sweep, store=store)
        except UserError:
            # The sweep lacks what this figure shows; what all of them need was there for the first.
            continue
    paths = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(STYLE):
            for name, figure in figures.items():
                paths.append(out / f"{name}.{form}")
                figure.savefig(paths[-1], dpi=200)
    except OSError as error:
        raise UserError(f"out = {out}; must be a writable directory; {error.strerror}") from None
    return paths
