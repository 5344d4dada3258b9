# SPDX-License-Identifier: Apache-2.0
"""Whether the best learning rate stays the same as models grow deeper.

Loss against learning rate, one curve per depth: under a parameterisation whose rate
transfers, the minima of all depths are at the same rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import cm, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rfjax.errors import UserError
from rfjax.scaling.laws.points import require_columns
from rfjax.scaling.style import STYLE

COLUMNS = ("depth", "learning_rate", "parameterisation")
_TITLES = {"standard": "standard", "mup": "muP"}
_CLIP = 1.25  # losses above this multiple of the worst minimum are cut off


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestRate:
    """The minimum of one curve.

    Attributes:
      parameterisation: that of the curve.
      depth: depth of its models.
      learning_rate: minimum of the parabola through the best rate tried and its
        neighbours, in logs; the best rate tried where it is the first or the last.
      loss: loss at that rate.
      is_inside: whether rates on both sides were tried, and were worse.
    """

    parameterisation: str
    depth: int
    learning_rate: float
    loss: float
    is_inside: bool


def find_best_rates(table: pd.DataFrame, *, loss: str = "loss") -> list[BestRate]:
    """The minimum for each parameterisation and depth; seeds are averaged.

    Args:
      table: rows with the columns `COLUMNS` and the loss; losses that are not finite
        (diverged runs) count as infinite.
      loss: column of the loss.

    Raises:
      CannotFit: a column is missing.
      UserError: a curve has no finite loss.
    """
    best = []
    for (parameterisation, depth), curve in _curves(table, loss=loss):
        rates, losses = curve.index.to_numpy(float), curve.to_numpy(float)
        if not np.isfinite(losses).any():
            raise UserError(
                f"every run of depth {depth:g}, {parameterisation}, diverged; try "
                "smaller learning rates."
            )
        at = int(np.argmin(losses))
        around = losses[max(at - 1, 0) : at + 2]
        is_inside = len(around) == 3
        rate, lowest = rates[at], losses[at]
        if is_inside and np.isfinite(around).all():
            rate, lowest = _vertex(rates[at - 1 : at + 2], around)
        best.append(
            BestRate(
                parameterisation=parameterisation,
                depth=int(depth),
                learning_rate=float(rate),
                loss=float(lowest),
                is_inside=is_inside,
            )
        )
    return best


def fit_drift(best: Sequence[BestRate]) -> dict[str, float]:
    """How the best rate depends on depth: slope of log rate over log depth.

    Returns:
      parameterisation -> slope; 0 is perfect transfer, -1 a rate that halves when the
      depth doubles; NaN where there is only one depth.
    """
    drifts = {}
    for name in sorted({point.parameterisation for point in best}):
        points = [point for point in best if point.parameterisation == name]
        if len(points) < 2:
            drifts[name] = float("nan")
            continue
        log_depth = np.log([point.depth for point in points])
        log_rate = np.log([point.learning_rate for point in points])
        drifts[name] = float(np.polyfit(log_depth, log_rate, 1)[0])
    return drifts


def draw_transfer(
    table: pd.DataFrame, *, loss: str = "loss", loss_label: str = "validation loss"
) -> Figure:
    """Loss against learning rate: one panel per parameterisation, one line per depth.

    A star marks the minimum, hollow where it is at the end of the rates tried.

    Args:
      table: see `find_best_rates`.
      loss: column of the loss.
      loss_label: label of the loss axis.
    """
    best = find_best_rates(table, loss=loss)
    drifts = fit_drift(best)
    curves = dict(_curves(table, loss=loss))
    names = [name for name in _TITLES if name in drifts]
    names += [name for name in drifts if name not in _TITLES]
    depths = sorted({point.depth for point in best})
    colours = dict(
        zip(depths, cm.viridis(np.linspace(0, 0.85, len(depths))), strict=True)
    )
    top = _CLIP * max(point.loss for point in best)
    with mpl.rc_context(STYLE):
        figure = Figure(
            figsize=(1.2 + 2.6 * len(names), 2.8), dpi=220, layout="constrained"
        )
        panels = figure.subplots(1, len(names), sharey=True, sharex=True, squeeze=False)
        for axes, name in zip(panels[0], names, strict=True):
            for point in best:
                if point.parameterisation == name:
                    curve = curves[name, point.depth]
                    _draw_curve(
                        axes, curve, point, colour=colours[point.depth], top=top
                    )
            drift = f"{round(drifts[name], 2) + 0.0:+.2f}".replace("-", "−")
            axes.set_title(
                f"{_TITLES.get(name, name)}: best rate ∝ depth$^{{{drift}}}$",
                fontsize=8,
                loc="left",
            )
            axes.set(xscale="log", yscale="log", xlabel="learning rate")
            axes.set_ylim(top=top)
            axes.yaxis.set_major_locator(
                ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
            )
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(ticker.NullLocator())
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=9))
            axes.xaxis.set_major_formatter(ticker.FuncFormatter(_rate_label))
            axes.xaxis.set_minor_locator(ticker.NullLocator())
        panels[0, 0].set_ylabel(loss_label, parse_math=False)
        handles, labels = panels[0, -1].get_legend_handles_labels()
        figure.legend(
            handles, labels, title="depth", title_fontsize=7, loc="outside right center"
        )
    return figure


def _curves(
    table: pd.DataFrame, *, loss: str
) -> Iterator[tuple[tuple[str, float], pd.Series]]:
    """((parameterisation, depth), mean loss by rising learning rate)."""
    require_columns(table, [*COLUMNS, loss])
    values = pd.to_numeric(table[loss], errors="coerce")
    table = table.assign(**{loss: values.where(np.isfinite(values), np.inf)})
    for key, rows in table.groupby(["parameterisation", "depth"]):
        yield key, rows.groupby("learning_rate")[loss].mean().sort_index()


def _vertex(rates: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """Minimum of the parabola through three points, in log rate and log loss."""
    coefficients = np.polyfit(np.log(rates), np.log(losses), 2)
    curvature, slope, _ = coefficients
    if not curvature > 0:  # three equal losses
        return rates[1], losses[1]
    log_rate = -slope / (2 * curvature)
    return np.exp(log_rate), np.exp(np.polyval(coefficients, log_rate))


def _rate_label(rate: float, _: int | None) -> str:
    """0.0005 as 5e-4."""
    digits, exponent = f"{rate:.0e}".split("e")
    return f"{digits}e−{-int(exponent)}" if rate < 1 else f"{rate:g}"


def _draw_curve(
    axes: Axes, curve: pd.Series, best: BestRate, *, colour: ArrayLike, top: float
) -> None:
    """One curve with its best rate; losses above `top` become triangles."""
    rates, losses = curve.index.to_numpy(float), curve.to_numpy(float)
    shown = losses <= top
    axes.plot(rates, np.minimum(losses, top), color=colour, label=f"{best.depth}")
    axes.plot(rates[shown], losses[shown], "o", ms=3, color=colour)
    for rate in rates[~shown]:  # too high for the panel, or diverged
        axes.annotate("▲", (rate, top), ha="center", va="top", fontsize=6, color=colour)
    axes.plot(
        best.learning_rate, best.loss, "*", ms=9, zorder=3, mew=0.6,
        mec=colour if not best.is_inside else "white",
        mfc=colour if best.is_inside else "white",
    )  # fmt: skip
