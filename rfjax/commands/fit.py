# SPDX-License-Identifier: Apache-2.0
"""Power laws of a sweep, or of a table of other people's runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from rfjax.commands import flag_text
from rfjax.commands.flags import JsonFile
from rfjax.errors import UserError
from rfjax.scaling.laws import LAWS, CannotFit
from rfjax.scaling.laws.fit import MIN_BOOTSTRAPS
from rfjax.scaling.laws.points import SIZE_MEASURES
from rfjax.scaling.report.folder import FitReport, run_fit
from rfjax.value_types import (
    Bounds,
    LocalPath,
    OneOf,
    PositiveFloat,
    PositiveInt,
    Text,
    checked,
)

_TAILS = "fewer do not reach the tails of an interval"
MODEL_FIELDS = ("depth", "size", "samples", "flops")


def _read_columns(_: type, tokens: Sequence[Any]) -> dict[str, str]:
    """params=N,samples=D: our name -> theirs."""
    pairs = [pair.partition("=") for pair in tokens[0].value.split(",")]
    if not all(name and equals for name, equals, _ in pairs):
        raise UserError(
            f"--columns must be as in params=N,samples=D, got {tokens[0].value!r}."
        )
    _check_once([name for name, _, _ in pairs], flag="--columns")
    return {name: value for name, _, value in pairs}


def _check_once(names: Sequence[str], *, flag: str) -> None:
    """Raises UserError for a name that is given twice: only one could count."""
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{flag} must name {twice[0]} once, got it twice; leave one.")


def _read_budgets(_: type, tokens: Sequence[Any]) -> list[float]:
    return [flag_text.number(token.value, name="--budget") for token in tokens]


def _read_models(_: type, tokens: Sequence[Any]) -> list[dict[str, float]]:
    """Models to predict, each as depth=12,samples=1e6."""
    models = []
    for token in tokens:
        pairs = [pair.partition("=") for pair in token.value.split(",")]
        if not all(name in MODEL_FIELDS and equals for name, equals, _ in pairs):
            raise UserError(
                f"--forecast must name a model by {', '.join(MODEL_FIELDS)}, as in "
                f"depth=12,samples=1e6, got {token.value!r}."
            )
        _check_once([name for name, _, _ in pairs], flag="--forecast")
        models.append(
            {n: flag_text.number(v, name=f"--forecast={n}") for n, _, v in pairs}
        )
    return models


def _flag(name: str, *, read: Any = None, metavar: str | None = None) -> Parameter:
    if read is None:
        return Parameter(name=name, metavar=metavar)
    return Parameter(
        name=name, converter=read, metavar=metavar, n_tokens=1, accepts_keys=False
    )


@checked
def fit(
    *,
    runs: LocalPath | None = None,
    table: LocalPath | None = None,
    columns: Annotated[
        Mapping[str, str] | None,
        _flag("--columns", read=_read_columns, metavar="OURS=THEIRS,..."),
    ] = None,
    out: LocalPath,
    law: Annotated[str, OneOf(LAWS)] = "chinchilla",
    size_measure: Annotated[str, OneOf(SIZE_MEASURES), _flag("--size")] = "params",
    loss: Text | None = None,
    num_bootstraps: Annotated[
        PositiveInt, Bounds(MIN_BOOTSTRAPS, remedy=_TAILS), _flag("--bootstraps")
    ] = 1000,
    holdout: Annotated[
        bool, Parameter(negative=("--no-holdout", "--noholdout"))
    ] = True,
    mid_run: bool = False,
    where: Text | None = None,
    budgets: Annotated[
        Sequence[PositiveFloat], _flag("--budget", read=_read_budgets, metavar="FLOPS")
    ] = (),
    forecasts: Annotated[
        Sequence[Mapping[str, PositiveFloat]],
        _flag("--forecast", read=_read_models, metavar="FIELD=NUMBER,..."),
    ] = (),
    json_file: JsonFile = None,
) -> FitReport:
    """Fits power laws with intervals to a sweep, or to a table of other people's runs.

    Args:
      runs: sweep folder; give this or --table.
      table: CSV file of other people's runs.
      columns: rfjax's names of its columns, as params=N,samples=D,loss=L; optionally
        train_flops, depth, run and seed.
      out: report folder to write. An earlier report there is replaced if the folder
        holds nothing else.
      law: chinchilla (size and samples), size, samples or compute.
      size_measure: params, params_without_adaln or flops (per sample).
      loss: column of the loss; val_ema/loss of runs, or loss of a table, if absent.
      num_bootstraps: resamples behind the intervals.
      holdout: test the law on the largest depth.
      mid_run: also fit points before the learning rate has cooled down.
      where: rows to fit, as "depth >= 2"; all usable ones if absent.
      budgets: training FLOPs to find the best model for; may be given several times.
      forecasts: model to predict, as depth=12,samples=1e6; may be given several times.
      json_file: file for a second copy of fit.json.

    Raises:
      UserError: the law cannot be fitted, or `out` holds anything else; nothing is
        written then.
      MissingFileError: the runs or the table are missing.

    Example:
      rfjax fit --runs=runs/depth --out=reports/depth --budget=1e16
    """
    try:
        return run_fit(
            runs=runs,
            table=table,
            columns=columns,
            out=out,
            law=law,
            size_measure=size_measure,
            loss=loss,
            num_bootstraps=num_bootstraps,
            holdout_largest=holdout,
            mid_run=mid_run,
            where=where,
            budgets=budgets,
            forecasts=forecasts,
            json_file=json_file,
        )
    except CannotFit as error:
        raise UserError(str(error)) from error
