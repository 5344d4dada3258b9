# SPDX-License-Identifier: Apache-2.0
"""`fit.json`: the law, its intervals, and everything needed to reproduce it."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import rfjax
from rfjax.scaling.laws.backtest import BackTest
from rfjax.scaling.laws.fit import Fit
from rfjax.scaling.laws.frontier import isoflop_exponent
from rfjax.scaling.laws.intervals import Interval
from rfjax.scaling.laws.optimum import allocation_exponent
from rfjax.scaling.report.analysis import Study
from rfjax.scaling.study.quality import as_text, count_rows, excluded_rows

if TYPE_CHECKING:
    import pandas as pd


def describe(study: Study) -> dict[str, Any]:
    """A study as plain JSON values: numbers with intervals, reasons, provenance."""
    fit = study.fit
    excluded = excluded_rows(study.table)
    document = {
        **_parameters(fit),
        "law": study.law_name,
        "formula": fit.law.formula,
        "in_words": fit.law.words,
        "size_measure": study.size_measure,
        "loss": study.loss,
        "notes": list(study.notes),
        "rows": count_rows(study.table, study.fitted),
        "num_points": len(fit.points),
        "noise": {
            "log_loss_standard_deviation": fit.noise.scale,
            "run_correlation": fit.noise.run_correlation,
        },
        "bootstrap": {
            name: _interval(interval)
            for name, interval in fit.bootstrap_parameters.items()
        },
        "options": dataclasses.asdict(fit.options),
        "runs": _distinct(study.fitted, "run"),
        "config_hashes": _distinct(study.fitted, "config_hash"),
        "code_versions": _distinct(study.fitted, "code_version"),
        "data": _distinct(study.fitted, "data"),
        "data_hashes": _distinct(study.fitted, "data_hash"),
        "validation_protocols": _distinct(study.fitted, "validation_protocol"),
        "validation_samples": _distinct(study.fitted, "validation_samples"),
        "rfjax_version": rfjax.__version__,
        "excluded": [
            {"row": int(index), "run": str(row.get("run", "")), "reason": row["reason"]}
            for index, row in excluded.iterrows()
        ],
        "num_mid_run_points": int(
            (
                (study.table["reason"] == "")
                & ~study.table["cooldown_end"].astype(bool)
            ).sum()
        ),
        "compute_optimal": _compute_optimal(study),
        "per_timestep": {
            f"{timestep:g}": fit if isinstance(fit, str) else _parameters(fit)
            for timestep, fit in study.per_timestep.items()
        },
        "holdout": _holdout(study.backtest),
        "forecasts": [
            {
                "depth": forecast.depth,
                **forecast.inputs,
                "beyond": forecast.beyond,
                "loss": _interval(forecast.law),
                "outcome": _interval(forecast.outcome),
            }
            for forecast in study.forecasts
        ],
    }
    return _finite(document)


def _parameters(fit: Fit) -> dict[str, Any]:
    """Name -> parameter with its interval."""
    return {name: _interval(interval) for name, interval in fit.parameters.items()}


def _interval(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else dataclasses.asdict(interval)


def _distinct(table: pd.DataFrame, column: str) -> list[str]:
    """The values of a column, sorted; empty if the table lacks it."""
    if column not in table:
        return []
    return sorted(as_text(value) for value in table[column].dropna().unique())


def _compute_optimal(study: Study) -> dict[str, Any] | None:
    """The optima and what they follow from; None for laws without cost."""
    if study.cost is None:
        return None
    return {
        "cost": dataclasses.asdict(study.cost),
        "size_exponent": _interval(allocation_exponent(study.fit, cost=study.cost)),
        "size_exponent_from_isoflop_parabolas": isoflop_exponent(list(study.isoflops)),
        "isoflop_parabolas": [
            {
                "flops": parabola.flops,
                "rows": parabola.num_rows,
                "sizes": len(parabola.sizes),
                "best_size": parabola.best_size,
                "best_loss": parabola.best_loss,
                "reason": parabola.reason,
            }
            for parabola in study.isoflops
        ],
        "budgets": [
            {
                "flops": best.flops,
                "size": _interval(best.size),
                "samples": _interval(best.samples),
                "loss": _interval(best.loss),
                "depth": _interval(best.depth),
                "trainable": best.trainable and dataclasses.asdict(best.trainable),
                "beyond": best.beyond,
            }
            for best in study.optima
        ],
    }


def _holdout(backtest: BackTest | str) -> dict[str, Any]:
    """The back-test, or the reason why there is none."""
    if isinstance(backtest, str):
        return {"reason": backtest}
    return {
        "size": backtest.held_out_size,
        **_parameters(backtest.fit),
        "predictions": [
            {
                "run": prediction.run,
                **prediction.inputs,
                "predicted": _interval(prediction.predicted),
                "measured": prediction.measured,
                "relative_error": prediction.relative_error,
                "inside": prediction.inside,
            }
            for prediction in backtest.predictions
        ],
    }


def _finite(value: Any) -> Any:
    """The same with null for what JSON does not have: infinity and NaN."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
