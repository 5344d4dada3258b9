# SPDX-License-Identifier: Apache-2.0
"""What the figures have in common: colours, axes, bands, error bars and labels.

Colour runs with the size of the model (viridis, which survives grey print and colour
blindness); what the law says is black, and what it had not seen is vermilion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rfjax.scaling.laws.intervals import Interval
from rfjax.scaling.report.analysis import Study

LAW_COLOUR, UNSEEN_COLOUR = "black", "#d55e00"
SIZE_COLOUR, SAMPLES_COLOUR = "#0072b2", "#cc79a7"
DASHES = (0, (4, 2))
AXIS_LABELS = {
    "params": "model size N (parameters)",
    "params_without_adaln": "model size N (parameters without adaLN)",
    "flops": "model size N (training FLOPs per sample)",
    "samples": "training samples D",
    "compute": "training compute C (FLOPs)",
}
_LOSS_LABELS = {
    "val_ema/loss": "validation loss (EMA weights)",
    "val/loss": "validation loss (raw weights)",
}


def one_panel() -> tuple[Figure, Axes]:
    """A figure of one panel, as wide as a column of a paper."""
    figure = Figure(figsize=(4.4, 3.1), layout="constrained")
    return figure, figure.subplots()


def draw_law(
    axes: Axes, x: np.ndarray, intervals: Sequence[Interval], *, seen: np.ndarray
) -> None:
    """A black curve with its band, dashed where there are no runs."""
    values, lows, highs = np.array([(i.value, i.low, i.high) for i in intervals]).T
    axes.fill_between(x, lows, highs, color=LAW_COLOUR, alpha=0.12, lw=0)
    axes.plot(x[seen], values[seen], color=LAW_COLOUR)
    axes.plot(x[~seen], values[~seen], color=LAW_COLOUR, ls=DASHES)


def draw_intervals(
    axes: Axes, x: np.ndarray, intervals: Sequence[Interval], **style: Any
) -> None:
    """Points with error bars; `style` goes to `Axes.errorbar`."""
    values, lows, highs = np.array([(i.value, i.low, i.high) for i in intervals]).T
    reach = np.stack([values - lows, highs - values])
    axes.errorbar(x, values, yerr=reach, fmt="o", ms=3, lw=0.9, capsize=1.5, **style)


def annotate(
    axes: Axes,
    text: str,
    place: tuple[float, float],
    *,
    offset: tuple[float, float],
    color: ArrayLike,
    ha: str = "left",
    rotation: float = 0,
) -> None:
    """Writes text at a place of the data, moved by an offset in points."""
    axes.annotate(
        text,
        place,
        xytext=offset,
        textcoords="offset points",
        ha=ha,
        va="center" if rotation == 0 else "bottom",
        rotation=rotation,
        rotation_mode="anchor",
        fontsize=7,
        color=color,
        annotation_clip=False,
    )


def input_axis(axis: Axis, name: str, study: Study) -> None:
    """The axis of one input of the law."""
    if name == "flops":
        power_axis(axis, AXIS_LABELS["compute"])
    else:
        key = study.size_measure if name == "size" else name
        count_axis(axis, AXIS_LABELS[key])


def power_axis(axis: Axis, label: str) -> None:
    """Logarithmic, labelled with powers of ten."""
    low, high = axis.get_data_interval()
    if low == high:  # one value has no range of its own
        axis.axes.set(**{f"{axis.axis_name}lim": (low / 2, high * 2)})
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_label_text(label, parse_math=False)  # perhaps the name of a column
    axis.set_minor_formatter(ticker.NullFormatter())


def count_axis(axis: Axis, label: str) -> None:
    """Logarithmic, labelled as 100k, 1M; with 2 and 5 too where decades are wide."""
    power_axis(axis, label)
    decades = np.ptp(np.log10(axis.get_view_interval()))
    inches = axis.axes.get_window_extent().size / axis.axes.figure.dpi
    room = inches["xy".index(axis.axis_name)] / decades
    subs = (1, 2, 5) if room > 1 else (1,)
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: short(value)))


def loss_axis(axis: Axis, study: Study) -> None:
    """Logarithmic with plain numbers: losses rarely span a decade."""
    power_axis(axis, _LOSS_LABELS.get(study.loss, study.loss))
    axis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_locator(ticker.NullLocator())


def ends_of(values: ArrayLike) -> tuple[float, float]:
    """The smallest and the largest value."""
    return float(np.min(values)), float(np.max(values))


def short(number: float) -> str:
    """1.2e9 as 1.2B."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.3g}"
