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
    lines += [f"  note: {note}" for note in fit.notes]
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
        *(f"<p class=note>{html.escape(note)}</p>" for note in fit.notes),
    ]


def _optima(study: Study) -> list[str]:
    """The compute-optimal models, if there are any."""
    if not study.optima:
        return []
    has_depth = study.optima[0].depth is not None
    return [
        "<h2>What to train on a budget</h2>",
        _table(
            ["FLOPs", "size", "samples", "loss", *["depth"] * has_depth],
            [
                [
                    f"{best.flops:.3g}",
                    _spell(best.size),
                    _spell(best.samples),
                    _spell(best.loss),
                    *([_spell(best.depth)] if has_depth else []),
                ]
                for best in study.optima
            ],
        ),
        f"<p>Cost: {html.escape(study.cost.source)}.</p>",
    ]


def _forecasts(study: Study) -> list[str]:
    """The requested models, if there are any."""
    if not study.forecasts:
        return []
    return [
        "<h2>Models not yet trained</h2>",
        _table(
            ["model", "loss by the law", "outcome of one run"],
            [
                [_name_model(f), _spell(f.law), _spell(f.outcome)]
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
