# SPDX-License-Identifier: Apache-2.0
"""Would the law have predicted its largest model? Fit without it and compare."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from rfjax.scaling.laws.fit import Fit, FitOptions, fit_law
from rfjax.scaling.laws.intervals import Interval
from rfjax.scaling.laws.law import get_law
from rfjax.scaling.laws.points import select_points, size_of

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One held-out point: what the fit without its model predicts, and the outcome.

    Attributes:
      run: name of the run.
      inputs: inputs of the law at the point.
      predicted: predicted loss, with the interval for the outcome of one run.
      measured: measured loss.
    """

    run: str
    inputs: dict[str, float]
    predicted: Interval
    measured: float

    @property
    def relative_error(self) -> float:
        """Predicted over measured, minus one."""
        return self.predicted.value / self.measured - 1

    @property
    def inside(self) -> bool:
        """Whether the measured loss lies in the interval."""
        return self.measured in self.predicted


@dataclasses.dataclass(frozen=True)
class BackTest:
    """A fit without the largest size, and its predictions for that size."""

    fit: Fit
    held_out_size: float
    predictions: tuple[Prediction, ...]


def hold_out_largest(
    table: pd.DataFrame,
    *,
    law: str,
    size_measure: str,
    loss: str,
    options: FitOptions,
) -> BackTest:
    """Fits without the largest size in the table and predicts its points.

    Raises: CannotFit if the smaller sizes do not determine the law.
    """
    sizes = size_of(table, size_measure=size_measure)
    largest = sizes.max()
    is_largest = np.isclose(sizes, largest, rtol=1e-6)
    smaller, held_out = table[~is_largest], table[is_largest]
    fit = fit_law(
        smaller, law=law, size_measure=size_measure, loss=loss, options=options
    )
    points = select_points(
        held_out,
        law=get_law(law),
        size_measure=size_measure,
        loss=loss,
        must_identify=False,
    )
    predictions = []
    names = held_out["run"] if "run" in held_out else points.runs
    for run, log_inputs, log_loss in zip(
        names, points.log_inputs, points.log_loss, strict=True
    ):
        inputs = dict(zip(fit.law.inputs, np.exp(log_inputs).tolist(), strict=True))
        predictions.append(
            Prediction(
                run=str(run),
                inputs=inputs,
                predicted=fit.predict_outcome(**inputs),
                measured=float(np.exp(log_loss)),
            )
        )
    return BackTest(fit, float(largest), tuple(predictions))
