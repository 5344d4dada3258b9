# SPDX-License-Identifier: Apache-2.0
"""The results of a depth-scaling study, computed from its runs table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rfjax.scaling.laws.backtest import BackTest, hold_out_largest
from rfjax.scaling.laws.depth import size_of_depth, why_no_depths
from rfjax.scaling.laws.fit import MIN_BOOTSTRAPS, Fit, FitOptions, fit_law
from rfjax.scaling.laws.frontier import IsoFlop, frontier, isoflop_parabolas
from rfjax.scaling.laws.intervals import Interval
from rfjax.scaling.laws.law import CannotFit, get_law
from rfjax.scaling.laws.optimum import (
    Cost,
    Optimum,
    beyond_points,
    cost_of,
    has_flops,
    optimum,
)
from rfjax.scaling.laws.points import input_columns, size_of
from rfjax.scaling.study import quality
from rfjax.timestep_levels import NUM_LEVELS

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The predicted loss of a model that is not in the table.

    Attributes:
      depth: its depth, None if the request named a size.
      inputs: the inputs of the law.
      law: the loss by the law, with its interval.
      outcome: the same with the interval for the outcome of one run.
      beyond: how far the inputs lie outside those of the fitted points, in words.
    """

    depth: float | None
    inputs: dict[str, float]
    law: Interval
    outcome: Interval
    beyond: str


@dataclasses.dataclass(frozen=True)
class Study:
    """A fitted study.

    Attributes:
      table: every row, with the reason why it is not fitted, empty if it may be.
      fitted: the rows that were fitted.
      loss: column of the loss.
      size_measure: the measure of size.
      law_name: a name in `laws.LAWS`.
      fit: the fitted law.
      cost: the cost of training, None for laws without size and samples.
      optima: compute-optimal models, one per budget.
      isoflops: parabolas as a cross-check of the optima.
      per_timestep: t -> fit of the loss at that t, or the reason why there is none.
      backtest: the fit without the largest model, or the reason why there is none.
      forecasts: predictions for the requested models.
      notes: what a reader should know before using any of it.
    """

    table: pd.DataFrame
    fitted: pd.DataFrame
    loss: str
    size_measure: str
    law_name: str
    fit: Fit
    cost: Cost | None
    optima: tuple[Optimum, ...]
    isoflops: tuple[IsoFlop, ...]
    per_timestep: dict[float, Fit | str]
    backtest: BackTest | str
    forecasts: tuple[Forecast, ...]
    notes: tuple[str, ...]


def analyse(
    table: pd.DataFrame,
    *,
    loss: str,
    law: str = "chinchilla",
    size_measure: str = "params",
    holdout_largest: bool = True,
    mid_run: bool = False,
    where: str | None = None,
    budgets: Sequence[float] = (),
    forecasts: Sequence[Mapping[str, float]] = (),
    options: FitOptions | None = None,
) -> Study:
    """Fits a study's law and everything that follows from it.

    Args:
      table: from `load_runs` or `load_table`.
      loss: column of the loss.
      law: a name in `laws.LAWS`; "compute" is fitted to the frontier's rows only.
      size_measure: measure of size: params, params_without_adaln or flops.
      holdout_largest: whether to test the law on its largest model.
      mid_run: whether to also fit rows at which the learning rate has not cooled down.
      where: condition on columns, such as "depth >= 2"; other rows are excluded, with
        that reason.
      budgets: training FLOPs to find the compute-optimal model for; by default 1, 10
        and 100 times the largest budget of the table.
      forecasts: models to predict, each with `depth` or `size`, and `samples`; or
        `flops` for the compute law.
      options: how to fit.

    Raises: CannotFit with the reason if the law cannot be fitted; UserError if `where`
      is not a condition on columns.
    """
    options = options or FitOptions()
    inputs = input_columns(get_law(law), size_measure=size_measure)
    table = quality.mark_unusable(table, loss=loss, inputs=inputs, where=where)
    fitted = quality.fitted_rows(table, mid_run=mid_run)
    if law == "compute":
        fitted = frontier(fitted, loss=loss)
    how = {"law": law, "size_measure": size_measure}
    fit = _fit(table, fitted, loss=loss, options=options, **how)

    cost, optima, isoflops = None, (), ()
    if law == "chinchilla":
        cost = cost_of(fitted, size_measure=size_measure)
        optima = _find_optima(
            fit, fitted, cost=cost, budgets=budgets, size_measure=size_measure
        )
        isoflops = _isoflops(fitted, loss=loss, cost=cost, size_measure=size_measure)
    found = tuple(
        forecast(fit, fitted, request, size_measure=size_measure)
        for request in forecasts
    )
    backtest: BackTest | str = "not requested"
    if holdout_largest:
        backtest = _back_test(fitted, loss=loss, options=options, **how)
    return Study(
        table=table,
        fitted=fitted,
        loss=loss,
        size_measure=size_measure,
        law_name=law,
        fit=fit,
        cost=cost,
        optima=optima,
        isoflops=isoflops,
        per_timestep=_fit_timesteps(fitted, loss=loss, options=options, **how),
        backtest=backtest,
        forecasts=found,
        notes=(
            *fit.notes,
            *_notes(fitted, law=law, size_measure=size_measure),
            *_warn_beyond([*optima, *found]),
        ),
    )


def _fit(table: pd.DataFrame, fitted: pd.DataFrame, *, loss: str, **how: Any) -> Fit:
    """The law of the fitted rows; what cannot be fitted also says what was left out."""
    try:
        return fit_law(fitted, loss=loss, **how)
    except CannotFit as error:
        parts = [str(error), *_mixed_input(fitted, law=how["law"])]
        if len(fitted) < len(table):
            rows = quality.count_rows(table, fitted, with_remedies=True)
            parts = [f"{rows}.", *parts] if len(fitted) else [f"{rows}."]
        raise CannotFit(" ".join(parts)) from error


def forecast(
    fit: Fit, table: pd.DataFrame, request: Mapping[str, float], *, size_measure: str
) -> Forecast:
    """Predicts one model, given by depth or size and by samples, or by flops.

    Raises: CannotFit if the request does not name the inputs of the law, or a depth is
      no whole number.
    """
    inputs = dict(request)
    depth = inputs.pop("depth", None)
    if depth is not None and depth != round(depth):
        raise CannotFit(
            f"the depth of a forecast must be a whole number of blocks, got {depth}."
        )
    if depth is not None and "size" in fit.law.inputs and "size" not in inputs:
        sizes = size_of_depth(table, np.array([depth]), size_measure=size_measure)
        inputs["size"] = float(sizes[0])
    return Forecast(
        depth=depth,
        inputs=inputs,
        law=fit.predict(**inputs),
        outcome=fit.predict_outcome(**inputs),
        beyond=beyond_points(fit, **inputs),
    )


def _find_optima(
    fit: Fit,
    table: pd.DataFrame,
    *,
    cost: Cost,
    budgets: Sequence[float],
    size_measure: str,
) -> tuple[Optimum, ...]:
    """The compute-optimal model of each budget, or of three from the largest spent."""
    sizes = size_of(table, size_measure=size_measure)
    largest = cost.flops(sizes, table["samples"]).max()
    return tuple(
        optimum(fit, flops=flops, cost=cost, table=table, size_measure=size_measure)
        for flops in (budgets or largest * np.array([1.0, 10.0, 100.0]))
    )


def _isoflops(
    table: pd.DataFrame, *, loss: str, cost: Cost, size_measure: str
) -> tuple[IsoFlop, ...]:
    """The parabolas at equal cost, by the table's FLOPs or else by the cost."""
    if not has_flops(table):
        sizes = size_of(table, size_measure=size_measure)
        table = table.assign(train_flops=cost.flops(sizes, table["samples"]))
    return tuple(isoflop_parabolas(table, loss=loss, size_measure=size_measure))


def _notes(table: pd.DataFrame, *, law: str, size_measure: str) -> list[str]:
    """What the fitted rows have that the law, or the optima, cannot take account of."""
    notes = _mixed_input(table, law=law)
    if law == "chinchilla" and "depth" in table:
        if reason := why_no_depths(table, size_measure=size_measure):
            notes.append(f"Optima are given without a depth: {reason}.")
    return notes


def _mixed_input(table: pd.DataFrame, *, law: str) -> list[str]:
    """A note if rows differ in the input that a law of one input leaves out."""
    left_out = {"size": "samples", "samples": "params"}.get(law)
    if left_out not in table or (values := table[left_out].nunique()) <= 1:
        return []
    return [
        f"The law leaves out {left_out}, which takes {values} values in these rows: "
        "its effect counts as noise. Choose rows of one value by --where."
    ]


def _warn_beyond(models: Sequence[Optimum | Forecast]) -> list[str]:
    """A note if a model lies outside of the fitted points."""
    if not any(model.beyond for model in models):
        return []
    return [
        "Optima and forecasts beyond the fitted points are extrapolated: their "
        "intervals hold only if the law holds there too."
    ]


def _back_test(
    table: pd.DataFrame, *, loss: str, law: str, size_measure: str, options: FitOptions
) -> BackTest | str:
    """The back-test, or the reason why there is none."""
    chosen = get_law(law)
    if "size" not in chosen.inputs:
        return f"{chosen.formula} has no size to hold out"
    try:
        return hold_out_largest(
            table, law=law, size_measure=size_measure, loss=loss, options=options
        )
    except CannotFit as error:
        return str(error)


def _fit_timesteps(
    table: pd.DataFrame, *, loss: str, law: str, size_measure: str, options: FitOptions
) -> dict[float, Fit | str]:
    """The same law for the loss at each level t = k / 8 that the table has."""
    fits: dict[float, Fit | str] = {}
    # Only parameters are reported per t, and those have profile intervals.
    options = dataclasses.replace(options, num_bootstraps=MIN_BOOTSTRAPS)
    for level in range(NUM_LEVELS):
        column = f"{loss}_t{level}"
        if column not in table:
            continue
        try:
            fits[level / NUM_LEVELS] = fit_law(
                table, law=law, size_measure=size_measure, loss=column, options=options
            )
        except CannotFit as error:
            fits[level / NUM_LEVELS] = str(error)
    return fits
