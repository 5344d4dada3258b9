# SPDX-License-Identifier: Apache-2.0
"""How far the law can be trusted: residuals, fits per t, back-test, parabolas."""

from __future__ import annotations

import numpy as np
from matplotlib import cm
from matplotlib.figure import Figure

from rfjax.scaling.laws.fit import Fit
from rfjax.scaling.report.analysis import Study
from rfjax.scaling.report.figures.axes import (
    AXIS_LABELS,
    LAW_COLOUR,
    SAMPLES_COLOUR,
    SIZE_COLOUR,
    UNSEEN_COLOUR,
    annotate,
    count_axis,
    draw_intervals,
    ends_of,
    input_axis,
    loss_axis,
    one_panel,
)
from rfjax.scaling.report.figures.models import Models

_EXPONENTS = {  # name -> (label, colour)
    "alpha": ("α, size", SIZE_COLOUR),
    "beta": ("β, samples", SAMPLES_COLOUR),
    "gamma": ("γ, compute", SIZE_COLOUR),
}


def residuals(study: Study) -> Figure:
    """Residuals in percent against each input of the law."""
    names = study.fit.law.inputs
    figure = Figure(figsize=(1.0 + 2.3 * len(names), 2.4), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    per_cent = 100 * np.expm1(study.fit.residuals)
    band = 200 * study.fit.noise.scale
    models = Models(study)
    colours = [models.colour(model) for model in models.of(study.fitted)]
    for column, (name, axes) in enumerate(zip(names, panels, strict=True)):
        axes.axhspan(-band, band, color="0.94", lw=0)
        axes.axhline(0, color=LAW_COLOUR, lw=0.6)
        inputs = np.exp(study.fit.points.log_inputs[:, column])
        axes.scatter(inputs, per_cent, c=colours, s=12, zorder=3)
        input_axis(axes.xaxis, name, study)
    panels[0].set_ylabel("measured / law − 1 (%)")
    return figure


def per_timestep(study: Study) -> Figure:
    """Exponents and floor of the law at each t."""
    fits = {t: fit for t, fit in study.per_timestep.items() if isinstance(fit, Fit)}
    timesteps = np.array(list(fits))
    exponents = study.fit.law.names[1 + study.fit.law.num_inputs :]
    figure = Figure(figsize=(5.6, 2.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for column, name in enumerate(exponents):
        label, colour = _EXPONENTS[name]
        apart = 0.016 * (column - (len(exponents) - 1) / 2)
        draw_intervals(
            left,
            timesteps + apart,
            [fit.parameters[name] for fit in fits.values()],
            color=colour,
            label=label,
        )
    floors = [fit.parameters["E"] for fit in fits.values()]
    draw_intervals(right, timesteps, floors, color=LAW_COLOUR)
    left.set_ylabel("exponent")
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handletextpad=0.2)
    right.set_ylabel("floor E")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.set_xlabel("timestep t")
        axes.set_xticks(np.arange(0, 1.01, 0.25))
        axes.set_xlim(-0.06, 1.0)
    return figure


def prediction(study: Study) -> Figure:
    """Held-out points: prediction with its interval and measurement; error below."""
    figure = Figure(figsize=(4.4, 3.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    by = "samples" if "samples" in study.fit.law.inputs else "size"
    points = sorted(study.backtest.predictions, key=lambda point: point.inputs[by])
    inputs = np.array([point.inputs[by] for point in points])
    measured = np.array([point.measured for point in points])
    intervals = [point.predicted for point in points]
    errors = [
        interval.map(lambda loss, truth=truth: 100 * (loss / truth - 1))
        for interval, truth in zip(intervals, measured, strict=True)
    ]
    draw_intervals(upper, inputs, intervals, color=LAW_COLOUR, label="predicted")
    upper.plot(
        inputs, measured, "_", ms=9, mew=1.6, color=UNSEEN_COLOUR, label="measured"
    )
    upper.legend()
    draw_intervals(lower, inputs, errors, color=LAW_COLOUR)
    lower.axhline(0, color=UNSEEN_COLOUR, lw=1)
    lower.set_ylabel("error (%)")
    loss_axis(upper.yaxis, study)
    input_axis(lower.xaxis, by, study)
    return figure


def isoflop(study: Study) -> Figure:
    """IsoFLOP parabolas, one colour per budget; budgets without one are left out."""
    figure, axes = one_panel()
    drawn = [parabola for parabola in study.isoflops if parabola.curve is not None]
    budgets = np.log([parabola.flops for parabola in drawn])
    shades = cm.viridis(0.88 * (budgets - budgets[0]) / max(np.ptp(budgets), 1e-9))
    largest = max(parabola.sizes[-1] for parabola in drawn)
    for number, (shade, parabola) in enumerate(zip(shades, drawn, strict=True)):
        log_sizes = np.log(parabola.sizes)
        line = np.linspace(*ends_of(log_sizes), 60)
        law = np.exp(np.polyval(parabola.curve, line))
        axes.plot(np.exp(line), law, color=shade)
        axes.plot(parabola.sizes, parabola.losses, "o", ms=3, color=shade)
        axes.plot(
            parabola.best_size, parabola.best_loss, "*", ms=8, color=UNSEEN_COLOUR
        )
        unit = " FLOPs" if number == 0 else ""
        end = (parabola.sizes[-1], parabola.losses[-1])
        label = _power(parabola.flops) + unit
        if parabola.sizes[-1] == largest:
            annotate(axes, label, end, offset=(5, 0), color=shade)
        else:  # other curves continue to its right
            annotate(axes, label, end, offset=(0, 7), ha="center", color=shade)
    count_axis(axes.xaxis, AXIS_LABELS[study.size_measure])
    loss_axis(axes.yaxis, study)
    return figure


def _power(number: float) -> str:
    """1.2e15 as 1.2 times ten to the 15, in mathtext."""
    exponent = int(np.floor(np.log10(number)))
    return rf"${number / 10**exponent:.1f} \times 10^{{{exponent}}}$"
