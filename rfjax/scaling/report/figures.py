# SPDX-License-Identifier: Apache-2.0
"""The figures of a study, one function each, at the width of a paper's column.

Colour runs with the size of the model (viridis, which survives grey print and colour
blindness); what the law says is black, and what it had not seen is vermilion.
"""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import cm, ticker
from matplotlib.figure import Figure
from scipy import optimize

from rfjax.scaling.laws.backtest import BackTest
from rfjax.scaling.laws.fit import Fit
from rfjax.scaling.laws.optimum import optimum
from rfjax.scaling.laws.points import size_of
from rfjax.scaling.report.analysis import Study

STYLE = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.ymargin": 0.08,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "mathtext.default": "regular",
    "savefig.dpi": 220,
}
_LAW, _UNSEEN, _SIZE, _SAMPLES = "black", "#d55e00", "#0072b2", "#cc79a7"
_DASHES = (0, (4, 2))
_AXIS_LABELS = {
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
_EXPONENTS = {  # name -> (label, colour)
    "alpha": ("α, size", _SIZE),
    "beta": ("β, samples", _SAMPLES),
    "gamma": ("γ, compute", _SIZE),
}


def draw_all(study: Study) -> Iterator[tuple[str, str, Figure]]:
    """Every figure that the study has the data for, as (name, caption, figure)."""
    level = f"{study.fit.options.confidence:.0%}"
    with mpl.rc_context(STYLE):
        if "samples" in study.table:
            yield (
                "loss_curves",
                "Validation loss along training. A line follows one run; dots are the "
                "points that were fitted, where the learning rate has cooled down.",
                loss_curves(study),
            )
        if study.cost is not None:
            yield (
                "loss_flops",
                "Loss against training compute. Coloured: the fitted law at the size "
                "of each model. Black: the lowest loss that the law allows for a "
                f"budget, with its {level} band, dashed beyond the runs.",
                loss_against_flops(study),
            )
            yield (
                "loss_surface",
                "The fitted law over size and samples, the runs it was fitted to, and "
                "the compute-optimal path, dashed beyond the largest budget spent.",
                loss_surface(study),
            )
        else:
            yield (
                "law",
                f"The fitted law with its {level} band, dashed beyond the runs.",
                law_in_one_input(study),
            )
        yield (
            "residuals",
            "What the law leaves over, in per cent of the loss. The band is two "
            "standard deviations.",
            residuals(study),
        )
        if any(isinstance(fit, Fit) for fit in study.per_timestep.values()):
            yield (
                "per_timestep",
                "The law fitted to the loss at each t by itself (0 is data, 1 is "
                f"noise), with {level} intervals.",
                per_timestep(study),
            )
        if isinstance(study.backtest, BackTest):
            yield (
                "prediction",
                "The largest model, predicted by a fit that has not seen it, with the "
                f"{level} interval for the outcome of one run, and what it came to.",
                prediction(study),
            )
        if study.isoflops:
            yield (
                "isoflop",
                "Cross-check without the law: parabolas through the losses at equal "
                "compute. A star is a minimum between the sizes.",
                isoflop(study),
            )


def loss_curves(study: Study) -> Figure:
    """Loss against samples, a line for each run in the colour of its model.

    The ends of branches of one trunk are joined: together they are one run's way.
    """
    figure, axes = _one_panel()
    models = _Models(study)
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
    _count_axis(axes.xaxis, _AXIS_LABELS["samples"])
    _loss_axis(axes.yaxis, study)
    _label_ends(axes, ends, models)
    return figure


def loss_against_flops(study: Study) -> Figure:
    """Loss against FLOPs: runs, the law at each size, the frontier with its band."""
    figure, axes = _one_panel()
    models = _Models(study)
    sizes = size_of(study.fitted, size_measure=study.size_measure)
    flops = study.cost.flops(sizes, study.fitted["samples"])
    for model, rows in study.fitted.groupby(models.of(study.fitted)):
        colour = models.colour(model)
        size = sizes[rows.index].median()
        curve = np.geomspace(*_ends(flops[rows.index]), 60)
        samples = study.cost.samples(size, curve)
        law = study.fit.predict_many(np.stack([np.full(60, size), samples], axis=1))
        axes.plot(curve, law, color=colour, lw=0.9)
        axes.plot(flops[rows.index], rows[study.loss], "o", ms=3, color=colour)
        if models.few:
            top = (curve[0], max(law[0], rows[study.loss].max()))
            label = models.label(model, short=model != models.first)
            # Depths are one character and stand upright, sizes need the slant.
            slant = {"ha": "center"} if models.by_depth else {"rotation": 50}
            _annotate(axes, label, top, offset=(0, 6), color=colour, **slant)

    budgets = np.geomspace(flops.min(), 10 * flops.max(), 60)
    best = [
        optimum(study.fit, flops=budget, cost=study.cost).loss for budget in budgets
    ]
    _draw_law(axes, budgets, best, seen=budgets <= flops.max())
    middle = (budgets[len(best) // 2], best[len(best) // 2].low)
    _annotate(axes, "compute-optimal", middle, offset=(-4, -6), ha="right", color=_LAW)
    _power_axis(axes.xaxis, _AXIS_LABELS["compute"])
    _loss_axis(axes.yaxis, study)
    return figure


def loss_surface(study: Study) -> Figure:
    """Contours of L(N, D) with the runs and the compute-optimal path."""
    figure, axes = _one_panel()
    sizes = size_of(study.fitted, size_measure=study.size_measure)
    samples = study.fitted["samples"]
    size_axis = np.geomspace(sizes.min() / 1.6, sizes.max() * 3, 120)
    samples_axis = np.geomspace(samples.min() / 1.6, samples.max() * 3, 120)
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

    flops = study.cost.flops(sizes, samples)
    budgets = np.geomspace(flops.min() / 100, flops.max() * 100, 80)
    path = [optimum(study.fit, flops=budget, cost=study.cost) for budget in budgets]
    best = np.array([(point.size.value, point.samples.value) for point in path])
    for part, dashes in (
        (budgets <= flops.max(), "-"),
        (budgets > flops.max(), _DASHES),
    ):
        axes.plot(*best[part].T, color=_LAW, ls=dashes)
    axes.set_xlim(*_ends(size_axis))
    axes.set_ylim(*_ends(samples_axis))
    _count_axis(axes.xaxis, _AXIS_LABELS[study.size_measure])
    _count_axis(axes.yaxis, _AXIS_LABELS["samples"])
    return figure


def law_in_one_input(study: Study) -> Figure:
    """A law of one input with its band."""
    figure, axes = _one_panel()
    inputs = np.exp(study.fit.points.log_inputs[:, 0])
    curve = np.geomspace(inputs.min(), inputs.max() * 10, 100)
    values = study.fit.predict_many(curve[:, None])
    draws = study.fit.predict_draws(curve[:, None])
    band = [study.fit.interval(*at) for at in zip(values, draws.T, strict=True)]
    _draw_law(axes, curve, band, seen=curve <= inputs.max())
    axes.plot(inputs, np.exp(study.fit.points.log_loss), "o", ms=3, color=_SIZE)
    _input_axis(axes.xaxis, study.fit.law.inputs[0], study)
    _loss_axis(axes.yaxis, study)
    return figure


def residuals(study: Study) -> Figure:
    """Residuals in per cent against each input of the law."""
    names = study.fit.law.inputs
    figure = Figure(figsize=(1.0 + 2.3 * len(names), 2.4), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    per_cent = 100 * np.expm1(study.fit.residuals)
    band = 200 * study.fit.noise.scale
    models = _Models(study)
    colours = [models.colour(model) for model in models.of(study.fitted)]
    for column, (name, axes) in enumerate(zip(names, panels, strict=True)):
        axes.axhspan(-band, band, color="0.94", lw=0)
        axes.axhline(0, color=_LAW, lw=0.6)
        inputs = np.exp(study.fit.points.log_inputs[:, column])
        axes.scatter(inputs, per_cent, c=colours, s=12, zorder=3)
        _input_axis(axes.xaxis, name, study)
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
        _draw_intervals(
            left,
            timesteps + apart,
            [fit.parameters[name] for fit in fits.values()],
            color=colour,
            label=label,
        )
    floors = [fit.parameters["E"] for fit in fits.values()]
    _draw_intervals(right, timesteps, floors, color=_LAW)
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
    """Held-out points: predicted with its interval, and measured; error below."""
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
    _draw_intervals(upper, inputs, intervals, color=_LAW, label="predicted")
    upper.plot(inputs, measured, "_", ms=9, mew=1.6, color=_UNSEEN, label="measured")
    upper.legend()
    _draw_intervals(lower, inputs, errors, color=_LAW)
    lower.axhline(0, color=_UNSEEN, lw=1)
    lower.set_ylabel("error (%)")
    _loss_axis(upper.yaxis, study)
    _input_axis(lower.xaxis, by, study)
    return figure


def isoflop(study: Study) -> Figure:
    """IsoFLOP parabolas, one colour a budget."""
    figure, axes = _one_panel()
    budgets = np.log([parabola.flops for parabola in study.isoflops])
    shades = cm.viridis(0.88 * (budgets - budgets[0]) / max(np.ptp(budgets), 1e-9))
    largest = max(parabola.sizes[-1] for parabola in study.isoflops)
    for shade, parabola in zip(shades, study.isoflops, strict=True):
        log_sizes, log_losses = np.log(parabola.sizes), np.log(parabola.losses)
        curve = np.linspace(*_ends(log_sizes), 60)
        coefficients = np.polyfit(log_sizes, log_losses, 2)
        axes.plot(np.exp(curve), np.exp(np.polyval(coefficients, curve)), color=shade)
        axes.plot(parabola.sizes, parabola.losses, "o", ms=3, color=shade)
        axes.plot(parabola.best_size, parabola.best_loss, "*", ms=8, color=_UNSEEN)
        unit = " FLOPs" if parabola is study.isoflops[0] else ""
        end = (parabola.sizes[-1], parabola.losses[-1])
        label = _power(parabola.flops) + unit
        if parabola.sizes[-1] == largest:
            _annotate(axes, label, end, offset=(5, 0), color=shade)
        else:  # other curves run on to the right of it
            _annotate(axes, label, end, offset=(0, 7), ha="center", color=shade)
    _count_axis(axes.xaxis, _AXIS_LABELS[study.size_measure])
    _loss_axis(axes.yaxis, study)
    return figure


class _Models:
    """Which model a row belongs to, by depth or else by size; its colour and name."""

    def __init__(self, study: Study):
        table = study.fitted
        self.by_depth = "depth" in table and table["depth"].notna().all()
        known = np.sort(self.of(study.table).dropna().unique())
        # With dozens of sizes a label each would only hide the points.
        self.few = 1 < len(known) <= 14
        self.first = known[0]
        shades = cm.viridis(np.linspace(0.0, 0.88, len(known)))
        self._colours = dict(zip(known, shades, strict=True))

    def of(self, table: pd.DataFrame) -> pd.Series:
        if self.by_depth:
            return table["depth"]
        return table.get("params", pd.Series(0, index=table.index))

    def colour(self, model) -> np.ndarray:
        return self._colours[model]

    def label(self, model, *, short=False) -> str:
        if self.by_depth:
            return f"{model:g}" if short else f"d = {model:g}"
        return _short(model) if short else f"N = {_short(model)}"


def _one_panel():
    figure = Figure(figsize=(4.4, 3.1), layout="constrained")
    return figure, figure.subplots()


def _draw_law(axes, x, intervals, *, seen) -> None:
    """A black curve with its band, dashed where there are no runs."""
    values, lows, highs = np.array([(i.value, i.low, i.high) for i in intervals]).T
    axes.fill_between(x, lows, highs, color=_LAW, alpha=0.12, lw=0)
    axes.plot(x[seen], values[seen], color=_LAW)
    axes.plot(x[~seen], values[~seen], color=_LAW, ls=_DASHES)


def _draw_intervals(axes, x, intervals, **style) -> None:
    values, lows, highs = np.array([(i.value, i.low, i.high) for i in intervals]).T
    reach = np.stack([values - lows, highs - values])
    axes.errorbar(x, values, yerr=reach, fmt="o", ms=3, lw=0.9, capsize=1.5, **style)


def _label_ends(axes, ends, models) -> None:
    """Names each curve beside its end, moved apart just as far as they must be."""
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
        _annotate(
            axes,
            models.label(model),
            ends[model],
            offset=(5, place - height),
            color=models.colour(model),
        )


def _label_contour(axes, level, colour, x, y, values) -> None:
    """Writes the level where its contour leaves by the right or the upper edge."""
    if values[-1, -1] < level < values[0, -1]:  # the loss falls to the right and up
        place = (x[-1], np.interp(-level, -values[:, -1], y))
        _annotate(axes, f"{level:g}", place, offset=(3, 0), color=colour)
    elif values[-1, -1] < level < values[-1, 0]:
        place = (np.interp(-level, -values[-1], x), y[-1])
        _annotate(axes, f"{level:g}", place, offset=(0, 5), ha="center", color=colour)


def _round_levels(values) -> np.ndarray:
    """Up to fourteen evenly spaced contour levels with few digits."""
    low, high = np.quantile(values, [0.02, 0.98])
    levels = ticker.MaxNLocator(14, steps=[1, 2, 5, 10]).tick_values(low, high)
    return levels[(levels > low) & (levels < high)].round(9)


def _annotate(axes, text, place, *, offset, color, ha="left", rotation=0) -> None:
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


def _input_axis(axis, name, study) -> None:
    """The axis of one input of the law."""
    if name == "flops":
        _power_axis(axis, _AXIS_LABELS["compute"])
    else:
        key = study.size_measure if name == "size" else name
        _count_axis(axis, _AXIS_LABELS[key])


def _power_axis(axis, label) -> None:
    """Logarithmic, labelled with powers of ten."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_label_text(label)
    axis.set_minor_formatter(ticker.NullFormatter())


def _count_axis(axis, label) -> None:
    """Logarithmic, labelled as 100k, 1M; with 2 and 5 where it is short of decades."""
    _power_axis(axis, label)
    decades = np.ptp(np.log10(axis.get_view_interval()))
    inches = axis.axes.get_window_extent().size / axis.axes.figure.dpi
    room = inches["xy".index(axis.axis_name)] / decades
    subs = (1, 2, 5) if room > 1 else (1,)
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _short(value)))


def _loss_axis(axis, study) -> None:
    """Logarithmic with plain numbers: losses rarely span a decade."""
    _power_axis(axis, _LOSS_LABELS.get(study.loss, study.loss))
    axis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_locator(ticker.NullLocator())


def _ends(values) -> tuple[float, float]:
    return float(np.min(values)), float(np.max(values))


def _short(number: float) -> str:
    """1.2e9 as 1.2B."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.3g}"


def _power(number: float) -> str:
    """1.2e15 as 1.2 times ten to the 15, in mathtext."""
    exponent = int(np.floor(np.log10(number)))
    return rf"${number / 10**exponent:.1f} \times 10^{{{exponent}}}$"
