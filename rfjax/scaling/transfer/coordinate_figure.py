# SPDX-License-Identifier: Apache-2.0
"""The coordinate check as a figure, with one panel per kind of activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rfjax.scaling.style import STYLE
from rfjax.scaling.transfer.coordinates import ACTIVATIONS, Coordinate, fit_slopes

_STYLES = {  # parameterisation -> (label, colour)
    "standard": ("standard", "#d55e00"),
    "mup": ("muP", "#0072b2"),
}
_FAINTEST = 0.25  # opacity of the first step drawn


def draw_coordinates(coordinates: Sequence[Coordinate]) -> Figure:
    """Mean change against width, log-log; later steps darker; slopes of the last step.

    Args:
      coordinates: results of one parameterisation or of both.
    """
    slopes = fit_slopes(coordinates)
    names = [name for name in _STYLES if name in slopes]
    widths = sorted({point.width for point in coordinates})
    last = max(point.step for point in coordinates)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 3.8), dpi=220, layout="constrained")
        panels = figure.subplots(2, 4, sharex=True)
        for axes, activation in zip(panels.flat, ACTIVATIONS, strict=True):
            for name in names:
                points = [
                    point
                    for point in coordinates
                    if (point.parameterisation, point.activation) == (name, activation)
                ]
                _draw_steps(axes, points, colour=_STYLES[name][1], last=last)
            axes.set_title(activation, fontsize=8, loc="left")
            _write_slopes(axes, {name: slopes[name][activation] for name in names})
            axes.set(xscale="log", yscale="log")
            axes.set_xticks(widths, [str(width) for width in widths])
            axes.xaxis.set_minor_locator(ticker.NullLocator())
            _keep_a_decade(axes)
        for axes in panels[:, 0]:
            axes.set_ylabel("mean |change|")
        for axes in panels[-1]:
            axes.set_xlabel("width (64 × depth)")
        handles = [
            mpl.lines.Line2D([], [], color=_STYLES[name][1], marker="o", ms=3)
            for name in names
        ]
        labels = [_STYLES[name][0] for name in names]
        figure.legend(
            handles,
            labels,
            title=f"change since the start, after 2 to {last} steps "
            "(the last bold, with its slope)",
            title_fontsize=8,
            loc="outside upper center",
            ncols=len(names),
        )
    return figure


def _draw_steps(
    axes: Axes, points: Sequence[Coordinate], *, colour: str, last: int
) -> None:
    """One line per step from the second on, which is the first to reach the blocks."""
    for step in range(2, last + 1):
        line = sorted((p.width, p.change) for p in points if p.step == step)
        if min(change for _, change in line) <= 0:
            continue  # has not moved yet
        is_last = step == last
        axes.plot(
            *zip(*line, strict=True),
            color=colour,
            alpha=_FAINTEST + (1 - _FAINTEST) * (step - 2) / max(last - 2, 1),
            lw=1.4 if is_last else 0.7,
            marker="o" if is_last else "",
            ms=3,
        )


def _write_slopes(axes: Axes, slopes: Mapping[str, float]) -> None:
    """Writes the slopes of the last step above the panel, each in its colour."""
    for row, (name, slope) in enumerate(reversed(slopes.items())):
        axes.annotate(
            f"{round(slope, 2) + 0.0:+.2f}".replace("-", "−"),
            (1.0, 1.03 + 0.1 * row),
            xycoords="axes fraction",
            ha="right",
            fontsize=7,
            color=_STYLES[name][1],
        )


def _keep_a_decade(axes: Axes) -> None:
    """Widens a short axis, so that noise on a flat line does not look like a slope."""
    low, high = np.log10(axes.get_ylim())
    missing = max(0.0, 1.0 - (high - low)) / 2
    axes.set_ylim(10 ** (low - missing), 10 ** (high + missing))
    axes.yaxis.set_major_locator(ticker.LogLocator(numticks=5))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
