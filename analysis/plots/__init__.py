"""Figures fit for a paper: units on the axes, colours that colour-blind readers tell apart.

Figures are made without pyplot, so that nothing global changes and no display is needed. matplotlib
is imported by the first call.
"""

from analysis.plots.curves import loss_curves
from analysis.plots.files import save_plots
from analysis.plots.rates import lr_sensitivity_plot
from analysis.plots.tuned import schedules, step_sizes, tuned_curves_plot, wall_clock

__all__ = [
    "loss_curves",
    "lr_sensitivity_plot",
    "save_plots",
    "schedules",
    "step_sizes",
    "tuned_curves_plot",
    "wall_clock",
]
