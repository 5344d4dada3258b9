# SPDX-License-Identifier: Apache-2.0
"""The measured losses: along training, and against what training cost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import optimize

from rfjax.scaling.laws.optimum import optimum
from rfjax.scaling.laws.points import size_of
from rfjax.scaling.report.analysis import Study
from rfjax.scaling.report.figures.axes import (
    AXIS_LABELS,
    LAW_COLOUR,
    annotate,
    count_axis,
    draw_law,
    ends_of,
    loss_axis,
    one_panel,
    power_axis,
)
from rfjax.scaling.report.figures.models import Models


def loss_curves(study: Study) -> Figure:
    """Loss against samples, a line per run in the colour of its model.

    The ends of branches of one trunk are joined: together they trace one run.
    """
    figure, axes = one_panel()
    models = Models(study)
    usable = study.table[study.table["reason"] == ""]
    ends = {}
    for model, rows in usable.groupby(models.of(usable)):
        fitted = study.fitted[models.of(study.fitted) == model]
        if "run" in rows:
            for _, run in rows.sort_values("samples").groupby("run"):
                axes.plot(
                    run["samples"],
                    run[study.loss],
                    color=models.colour(model),
                    lw=0.7,
                    alpha=0.6,
                )
        branches = [fitted]
        if "trunk" in fitted:
            branches = [branch for _, branch in fitted.groupby("trunk")]
        for branch in branches:
            branch = branch.sort_values("samples")
            axes.plot(
                branch["samples"],
                branch[study.loss],
                "o-" if "trunk" in fitted else "o",
                ms=3,
                lw=0.7,
                color=models.colour(model),
            )
        last = rows.sort_values(["samples", study.loss], ascending=[True, False])
        ends[model] = last[["samples", study.loss]].iloc[-1].to_numpy(float)
    count_axis(axes.xaxis, AXIS_LABELS["samples"])
    loss_axis(axes.yaxis, study)
    _label_ends(axes, ends, models)
    return figure


def loss_against_flops(study: Study) -> Figure:
    """Loss against FLOPs: runs, the law at each size, the frontier with its band."""
    figure, axes = one_panel()
    models = Models(study)
    sizes = size_of(study.fitted, size_measure=study.size_measure)
    flops = study.cost.flops(sizes, study.fitted["samples"])
    for model, rows in study.fitted.groupby(models.of(study.fitted)):
        colour = models.colour(model)
        size = sizes[rows.index].median()
        curve = np.geomspace(*ends_of(flops[rows.index]), 60)
        samples = study.cost.samples(size, curve)
        law = study.fit.predict_many(np.stack([np.full(60, size), samples], axis=1))
        if has_curves(study):
            axes.plot(curve, law, color=colour, lw=0.9)
        axes.plot(flops[rows.index], rows[study.loss], "o", ms=3, color=colour)
        if models.few:
            top = (curve[0], max(law[0], rows[study.loss].max()))
            label = models.label(model, brief=model != models.first)
            # Depths are one character and fit upright, sizes need the slant.
            slant = {"ha": "center"} if models.by_depth else {"rotation": 50}
            annotate(axes, label, top, offset=(0, 6), color=colour, **slant)

    budgets = np.geomspace(flops.min(), 10 * flops.max(), 60)
    best = [
        optimum(study.fit, flops=budget, cost=study.cost).loss for budget in budgets
    ]
    draw_law(axes, budgets, best, seen=budgets <= flops.max())
    middle = (budgets[len(best) // 2], best[len(best) // 2].low)
    annotate(
        axes, "compute-optimal", middle, offset=(-4, -6), ha="right", color=LAW_COLOUR
    )
    power_axis(axes.xaxis, AXIS_LABELS["compute"])
    loss_axis(axes.yaxis, study)
    return figure


def has_curves(study: Study) -> bool:
    """Whether models have several points, and so a curve of their own."""
    models = Models(study).of(study.fitted)
    return len(models) >= 2 * models.nunique()


def _label_ends(axes: Axes, ends: Mapping[float, np.ndarray], models: Models) -> None:
    """Names each curve beside its end, moved apart no further than needed."""
    if not models.few:
        return
    axes.figure.draw_without_rendering()  # fixes the scales
    pixels_per_point = axes.figure.dpi / 72
    order = sorted(ends, key=lambda model: ends[model][1])
    heights = [axes.transData.transform(ends[m])[1] / pixels_per_point for m in order]
    gaps = 7.5 * np.arange(len(order))
    # Least-squares heights that keep the order and the gaps.
    placed = optimize.isotonic_regression(np.array(heights) - gaps).x + gaps
    for model, height, place in zip(order, heights, placed, strict=True):
        annotate(
            axes,
            models.label(model),
            ends[model],
            offset=(5, place - height),
            color=models.colour(model),
        )
