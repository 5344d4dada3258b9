# SPDX-License-Identifier: Apache-2.0
"""A study as one self-contained HTML page."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
from collections.abc import Sequence

from rfjax.scaling.laws.backtest import BackTest
from rfjax.scaling.laws.fit import Fit
from rfjax.scaling.laws.intervals import Interval
from rfjax.scaling.laws.optimum import Optimum
from rfjax.scaling.report.analysis import Forecast, Study
from rfjax.scaling.study.quality import count_rows, excluded_rows

_CSS = """
body { font: 16px/1.55 Georgia, serif; max-width: 46rem; margin: 3rem auto;
  padding: 0 1rem; color: #1b1b1b; }
h1 { font-size: 1.7rem; font-weight: normal; margin-bottom: 0.2rem; }
h2 { font-size: 1.15rem; margin-top: 2.4rem; }
.law { font-size: 1.25rem; text-align: center; margin: 1.4rem 0; }
table { border-collapse: collapse; margin: 1rem auto; font-size: 0.92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.8rem; text-align: right; }
th { font-weight: normal; border-bottom: 1px solid; }
td:first-child, th:first-child { text-align: left; }
figure { margin: 2rem 0; text-align: center; }
figure img { max-width: 100%; width: 34rem; }
figcaption { font-size: 0.88rem; color: #444; text-align: left; margin: 0 3rem; }
.note { border-left: 3px solid #d55e00; padding-left: 0.8rem; }
details { font-size: 0.88rem; }
"""


def page(study: Study, pictures: Sequence[tuple[str, str, bytes]]) -> str:
    """The report as one self-contained HTML page.

    Args:
      study: what to report.
      pictures: (name, caption, PNG) of each figure.
    """
    sections = [
        *_law(study),
        *_optima(study),
        *_forecasts(study),
        "<h2>The largest model, held out</h2>",
        _backtest(study.backtest),
        "<h2>Figures</h2>",
        *(_figure(*picture) for picture in pictures),
        *_provenance(study),
    ]
    body = "\n".join(sections)
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        f"<title>Depth-scaling study</title><style>{_CSS}</style>\n<body>{body}</body>"
        "</html>\n"
    )


def summary(study: Study) -> str:
    """The law and its parameters as a few lines of text."""
    fit = study.fit
    lines = [
        fit.law.formula,
        *(f"  {name} = {_spell(i)}" for name, i in fit.parameters.items()),
    ]
    lines += [
        f"  {len(fit.points)} points, noise {100 * fit.noise.scale:.2g} % of the loss, "
        f"{fit.options.confidence:.0%} intervals, N is {study.size_measure}"
    ]
    lines += [f"  {_spell_optimum(best)}" for best in study.optima]
    lines += [f"  {_count_isoflops(study)}"] * bool(study.isoflops)
    lines += [f"  note: {note}" for note in study.notes]
    if isinstance(study.backtest, BackTest):
        lines += [f"  held out: {_judge(study.backtest)}"]
    if len(study.fitted) < len(study.table):
        lines += [f"  {count_rows(study.table, study.fitted)}"]
    return "\n".join(lines)


def _law(study: Study) -> list[str]:
    """The title, the law, its parameters and notes on them."""
    fit = study.fit
    level = f"{fit.options.confidence:.0%}"
    return [
        "<h1>Depth-scaling study</h1>",
        f"<p>{html.escape(fit.law.words)} "
        f"Loss is <code>{html.escape(study.loss)}</code>; "
        f"size is <code>{study.size_measure}</code>; "
        f"{len(fit.points)} points from {len(set(fit.points.runs))} runs.</p>",
        f"<p class=law>{html.escape(fit.law.formula)}</p>",
        _table(
            ["", "value", f"{level} by profile", f"{level} by bootstrap"],
            [
                [
                    name,
                    _digits(i.value),
                    _range(i),
                    _range(fit.bootstrap_parameters[name]),
                ]
                for name, i in fit.parameters.items()
            ],
        ),
        f"<p>The law leaves {100 * fit.noise.scale:.2g} % of the loss unexplained "
        f"(standard deviation); the points of one run share "
        f"{100 * fit.noise.run_correlation:.0f} % of that variance.</p>",
        *(f"<p class=note>{html.escape(note)}</p>" for note in study.notes),
    ]


def _optima(study: Study) -> list[str]:
    """The compute-optimal models, if there are any."""
    if not study.optima:
        return []
    has_depth = study.optima[0].trainable is not None
    depth_columns = ["depth to train", "its samples", "its loss"]
    return [
        "<h2>What to train on a budget</h2>",
        _table(
            [
                "FLOPs",
                "size",
                "samples",
                "loss",
                *depth_columns * has_depth,
                "beyond the fitted points",
            ],
            [
                [
                    f"{best.flops:.3g}",
                    _spell(best.size),
                    _spell(best.samples),
                    _spell(best.loss),
                    *(
                        [
                            f"{best.trainable.depth}",
                            _digits(best.trainable.samples),
                            _spell(best.trainable.loss),
                        ]
                        if has_depth
                        else []
                    ),
                    best.beyond or "no",
                ]
                for best in study.optima
            ],
        ),
        f"<p>Cost: {html.escape(study.cost.source)}.</p>",
        *_isoflops(study),
    ]


def _spell_optimum(best: Optimum) -> str:
    """What to train on a budget, in a line of text."""
    text = (
        f"{best.flops:.3g} FLOPs: size {_digits(best.size.value)}, samples "
        f"{_digits(best.samples.value)}, loss {_spell(best.loss)}"
    )
    if best.trainable is not None:
        text += (
            f"; of whole depths best {best.trainable.depth}, loss "
            f"{_digits(best.trainable.loss.value)}"
        )
    return text + (f"; beyond the fitted points: {best.beyond}" if best.beyond else "")


def _isoflops(study: Study) -> list[str]:
    """The budgets at which sizes were compared, and what came of each."""
    if not study.isoflops:
        return [
            "<p>No isoFLOP parabolas: no budget is covered by four sizes or more.</p>"
        ]
    return [
        f"<p>{html.escape(_count_isoflops(study))}.</p>",
        _table(
            ["FLOPs", "rows", "sizes", "best size", "loss", "why there is none"],
            [
                [
                    f"{parabola.flops:.3g}",
                    str(parabola.num_rows or "interpolated"),
                    str(len(parabola.sizes)),
                    "" if parabola.reason else _digits(parabola.best_size),
                    "" if parabola.reason else _digits(parabola.best_loss),
                    html.escape(parabola.reason),
                ]
                for parabola in study.isoflops
            ],
        ),
    ]


def _count_isoflops(study: Study) -> str:
    """How many budgets the parabolas found a best size at, and from which rows."""
    found = [parabola for parabola in study.isoflops if not parabola.reason]
    text = (
        f"isoFLOP parabolas: a best size at {len(found)} of {len(study.isoflops)} "
        "budgets, "
    )
    if any(parabola.num_rows for parabola in study.isoflops):
        rows = sum(parabola.num_rows for parabola in found)
        return text + f"which hold {rows} of {len(study.fitted)} rows"
    return text + "by losses interpolated between the points of each size"


def _forecasts(study: Study) -> list[str]:
    """The requested models, if there are any."""
    if not study.forecasts:
        return []
    return [
        "<h2>Models not yet trained</h2>",
        _table(
            [
                "model",
                "loss by the law",
                "outcome of one run",
                "beyond the fitted points",
            ],
            [
                [_name_model(f), _spell(f.law), _spell(f.outcome), f.beyond or "no"]
                for f in study.forecasts
            ],
        ),
    ]


def _figure(name: str, caption: str, picture: bytes) -> str:
    """One figure, with the PNG inside."""
    encoded = base64.b64encode(picture).decode("ascii")
    return (
        f'<figure id="{name}"><img alt="{html.escape(caption)}" '
        f'src="data:image/png;base64,{encoded}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _backtest(backtest: BackTest | str) -> str:
    """The table of held-out points, or why there is none."""
    if isinstance(backtest, str):
        return f"<p>No back-test: {html.escape(backtest)}</p>"
    rows = [
        [
            html.escape(point.run),
            _spell(point.predicted),
            _digits(point.measured),
            f"{100 * point.relative_error:+.2f} %",
            "yes" if point.inside else "no",
        ]
        for point in backtest.predictions
    ]
    return f"<p>{html.escape(_judge(backtest))}</p>" + _table(
        ["run", "predicted", "measured", "error", "inside"], rows
    )


def _judge(backtest: BackTest) -> str:
    """How many held-out points the fit predicted, in a sentence."""
    points = backtest.predictions
    inside = sum(point.inside for point in points)
    worst = max(abs(point.relative_error) for point in points)
    return (
        f"a fit without size {_digits(backtest.held_out_size)} predicts {inside} of "
        f"its {len(points)} points inside the interval; the largest error is "
        f"{100 * worst:.2f} %."
    )


def _provenance(study: Study) -> list[str]:
    """Excluded rows, failed fits per t, and the options."""
    excluded = excluded_rows(study.table)
    refused = {
        timestep: fit
        for timestep, fit in study.per_timestep.items()
        if not isinstance(fit, Fit)
    }
    sections = ["<h2>Rows and options</h2>"]
    sections.append(f"<p>{html.escape(count_rows(study.table, study.fitted))}.</p>")
    if len(excluded):
        rows = [
            [
                str(index),
                html.escape(str(row.get("run", ""))),
                html.escape(row["reason"]),
            ]
            for index, row in excluded.iterrows()
        ]
        sections.append(_table(["row", "run", "reason"], rows))
    sections += [
        f"<p>No law at t = {timestep:g}: {html.escape(reason)}</p>"
        for timestep, reason in refused.items()
    ]
    options = html.escape(json.dumps(dataclasses.asdict(study.fit.options)))
    sections.append(
        f"<details><summary>Options</summary><code>{options}</code></details>"
    )
    return sections


def _name_model(forecast: Forecast) -> str:
    inputs = ", ".join(f"{key} {value:.4g}" for key, value in forecast.inputs.items())
    return inputs if forecast.depth is None else f"d = {forecast.depth:g}, {inputs}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _digits(value: float) -> str:
    return f"{value:.5g}"


def _range(interval: Interval) -> str:
    return f"{_digits(interval.low)} to {_digits(interval.high)}"


def _spell(interval: Interval) -> str:
    return f"{_digits(interval.value)} ({_range(interval)})"
