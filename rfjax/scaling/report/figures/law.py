# SPDX-License-Identifier: Apache-2.0
"""The fitted law itself: over size and samples, or along its one input."""

from __future__ import annotations

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rfjax.scaling.laws.optimum import optimum
from rfjax.scaling.laws.points import size_of
from rfjax.scaling.report.analysis import Study
from rfjax.scaling.report.figures.axes import (
    AXIS_LABELS,
    DASHES,
    LAW_COLOUR,
    SIZE_COLOUR,
    annotate,
    count_axis,
    draw_law,
    ends_of,
    input_axis,
    loss_axis,
    one_panel,
)

_REACH = 1000.0  # how far from the runs the surface is still worth a look


def loss_surface(study: Study) -> Figure:
    """Contours of L(N, D) with the runs and the compute-optimal path."""
    figure, axes = one_panel()
    sizes = size_of(study.fitted, size_measure=study.size_measure)
    samples = study.fitted["samples"]
    budgets, path = _optimal_path(study)
    shown = path[path_in_reach(study)]
    size_axis, samples_axis = (
        np.geomspace(*ends_of([seen.min() / 1.6, seen.max() * 3, *best]), 120)
        for seen, best in zip((sizes, samples), shown.T, strict=True)
    )
    grid = np.stack(np.meshgrid(size_axis, samples_axis), axis=-1)
    law = study.fit.predict_many(grid.reshape(-1, 2)).reshape(120, 120)
    levels = _round_levels(law)
    contours = axes.contour(
        size_axis, samples_axis, law, levels=levels, cmap="viridis", linewidths=0.8
    )
    axes.scatter(
        sizes,
        samples,
        c=study.fitted[study.loss],
        s=16,
        edgecolors="black",
        linewidths=0.4,
        cmap="viridis",
        norm=contours.norm,
        zorder=3,
    )
    for level, colour in zip(levels, contours.cmap(contours.norm(levels)), strict=True):
        _label_contour(axes, level, colour, size_axis, samples_axis, law)

    flops = study.cost.flops(sizes, samples).max()
    for part, dashes in ((budgets <= flops, "-"), (budgets >= flops, DASHES)):
        axes.plot(*path[part].T, color=LAW_COLOUR, ls=dashes)
    axes.set_xlim(*ends_of(size_axis))
    axes.set_ylim(*ends_of(samples_axis))
    count_axis(axes.xaxis, AXIS_LABELS[study.size_measure])
    count_axis(axes.yaxis, AXIS_LABELS["samples"])
    return figure


def path_in_reach(study: Study) -> np.ndarray:
    """Which budgets of the optimal path the axes of the surface are to hold.

    Those from the largest budget spent to ten times it, unless their models are so far
    from the runs that nothing else could be seen.
    """
    budgets, path = _optimal_path(study)
    seen = np.exp(study.fit.points.log_inputs)
    flops = study.cost.flops(*seen.T).max()
    near = (path > seen.min(0) / _REACH) & (path < seen.max(0) * _REACH)
    return (budgets >= flops) & (budgets <= 10 * flops) & near.all(axis=1)


def _optimal_path(study: Study) -> tuple[np.ndarray, np.ndarray]:
    """Budgets [81] around those spent, and their best (size, samples) [81, 2]."""
    flops = study.cost.flops(*np.exp(study.fit.points.log_inputs).T)
    below = np.geomspace(flops.min() / 100, flops.max(), 41)
    budgets = np.concatenate([below, flops.max() * np.geomspace(1, 100, 41)[1:]])
    best = [optimum(study.fit, flops=budget, cost=study.cost) for budget in budgets]
    return budgets, np.array([(b.size.value, b.samples.value) for b in best])


def law_in_one_input(study: Study) -> Figure:
    """A law of one input with its band."""
    figure, axes = one_panel()
    inputs = np.exp(study.fit.points.log_inputs[:, 0])
    curve = np.geomspace(inputs.min(), inputs.max() * 10, 100)
    values = study.fit.predict_many(curve[:, None])
    draws = study.fit.predict_draws(curve[:, None])
    band = [study.fit.interval(*at) for at in zip(values, draws.T, strict=True)]
    draw_law(axes, curve, band, seen=curve <= inputs.max())
    axes.plot(inputs, np.exp(study.fit.points.log_loss), "o", ms=3, color=SIZE_COLOUR)
    input_axis(axes.xaxis, study.fit.law.inputs[0], study)
    loss_axis(axes.yaxis, study)
    return figure


def _label_contour(
    axes: Axes,
    level: float,
    colour: ArrayLike,
    x: np.ndarray,
    y: np.ndarray,
    values: np.ndarray,
) -> None:
    """Writes the level where its contour meets the right or the upper edge."""
    if values[-1, -1] < level < values[0, -1]:  # the loss falls to the right and up
        place = (x[-1], np.interp(-level, -values[:, -1], y))
        annotate(axes, f"{level:g}", place, offset=(3, 0), color=colour)
    elif values[-1, -1] < level < values[-1, 0]:
        place = (np.interp(-level, -values[-1], x), y[-1])
        annotate(axes, f"{level:g}", place, offset=(0, 5), ha="center", color=colour)


def _round_levels(values: np.ndarray) -> np.ndarray:
    """Up to fourteen evenly spaced contour levels with few digits."""
    low, high = np.quantile(values, [0.02, 0.98])
    levels = ticker.MaxNLocator(14, steps=[1, 2, 5, 10]).tick_values(low, high)
    return levels[(levels > low) & (levels < high)]
