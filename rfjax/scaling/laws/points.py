# SPDX-License-Identifier: Apache-2.0
"""From a runs table to the points of one law, or the reason why it cannot be fitted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from rfjax.scaling.laws.law import LAWS, CannotFit, Law

if TYPE_CHECKING:  # importing pandas takes a second, and only readers of tables need it
    import pandas as pd

# measure of model size -> columns of the runs table that it is computed from
SIZE_MEASURES = {
    "params": ("params",),
    "params_without_adaln": ("params_without_adaln",),
    "flops": ("train_flops", "samples"),  # their ratio: training FLOPs per sample
}
# Two values of an input do not determine a floor, a factor and an exponent.
_MIN_DISTINCT = 3
# Points beyond the number of parameters; without them the noise cannot be measured.
_MIN_SPARE_POINTS = 2


@dataclasses.dataclass(frozen=True)
class Points:
    """What a law is fitted to.

    Attributes:
      log_inputs: [n, J] natural logarithms of the law's inputs.
      log_loss: [n] natural logarithm of the loss.
      runs: [n] labels, shared by points of one run or of branches of one trunk.
    """

    log_inputs: np.ndarray
    log_loss: np.ndarray
    runs: np.ndarray

    def __len__(self) -> int:
        return len(self.log_loss)


def input_columns(law: Law, *, size_measure: str) -> tuple[str, ...]:
    """Columns of the runs table that the inputs of a law are computed from.

    Raises: CannotFit if the size measure is unknown.
    """
    if size_measure not in SIZE_MEASURES:
        raise CannotFit(
            f"size_measure must be one of {', '.join(SIZE_MEASURES)}, "
            f"got {size_measure!r}."
        )
    columns = {
        "size": SIZE_MEASURES[size_measure],
        "samples": ("samples",),
        "flops": ("train_flops",),
    }
    wanted = (name for key in law.inputs for name in columns[key])
    return tuple(dict.fromkeys(wanted))


def size_of(table: pd.DataFrame, *, size_measure: str) -> pd.Series:
    """Model sizes of the rows of a runs table, in the given measure.

    Raises: CannotFit if the measure is unknown or its columns are missing.
    """
    columns = input_columns(LAWS["size"], size_measure=size_measure)
    require_columns(table, columns)
    sizes = table[columns[0]]
    return sizes / table[columns[1]] if len(columns) == 2 else sizes


def select_points(
    table: pd.DataFrame,
    *,
    law: Law,
    size_measure: str,
    loss: str,
    must_identify: bool = True,
) -> Points:
    """The points of a law from the rows of a runs table, all of which are used.

    Args:
      table: runs table.
      law: the law, which determines the inputs.
      size_measure: a key of `SIZE_MEASURES`.
      loss: column of the loss.
      must_identify: whether the points must determine every parameter of the law;
        points that are only predicted need not.

    Raises: CannotFit if a column is missing, a value is not a positive number, or
      the points cannot determine every parameter of the law.
    """
    read = {
        "size": lambda: size_of(table, size_measure=size_measure),
        "samples": lambda: _column(table, "samples"),
        "flops": lambda: _column(table, "train_flops"),
    }
    inputs = {name: np.asarray(read[name](), dtype=float) for name in law.inputs}
    losses = np.asarray(_column(table, loss), dtype=float)
    for name, values in {**inputs, loss: losses}.items():
        if not (np.isfinite(values) & (values > 0)).all():
            raise CannotFit(
                f"{name} must be a positive number in every fitted row, got "
                f"{values[~(np.isfinite(values) & (values > 0))][0]}; exclude that row."
            )
    points = Points(
        log_inputs=np.log(np.stack(list(inputs.values()), axis=1)),
        log_loss=np.log(losses),
        runs=_run_labels(table),
    )
    if must_identify:
        check_identified(points, law=law)
    return points


def _run_labels(table: pd.DataFrame) -> np.ndarray:
    """[n] labels of the points that share noise: branches of one trunk count as one."""
    if "trunk" in table and table["trunk"].notna().all():
        return np.asarray(table["trunk"])
    if "run" in table:
        return np.asarray(table["run"])
    return np.arange(len(table)).astype(str)


def check_identified(points: Points, *, law: Law) -> None:
    """Checks that the points can determine every parameter of the law.

    Raises: CannotFit, naming the parameters and what would determine them.
    """
    for column, name in enumerate(law.inputs):
        distinct = len(np.unique(points.log_inputs[:, column].round(9)))
        if distinct < _MIN_DISTINCT:
            coefficient = law.names[1 + column]
            exponent = law.names[1 + law.num_inputs + column]
            others = " or ".join(
                f"law={other}" for other in law.inputs if other != name
            )
            raise CannotFit(
                f"{coefficient} and {exponent} are not identified: {name} takes "
                f"{distinct} distinct value{'s' * (distinct != 1)}, at least "
                f"{_MIN_DISTINCT} are needed; add runs of another {name}"
                + (f", or choose the reduced law {others}." if others else ".")
            )
    needed = law.num_parameters + _MIN_SPARE_POINTS
    if len(points) < needed:
        raise CannotFit(
            f"{law.formula} needs at least {needed} points for its "
            f"{law.num_parameters} parameters, got {len(points)}; add runs or choose "
            f"a law with fewer parameters."
        )
    centred = points.log_inputs - points.log_inputs.mean(axis=0)
    if np.linalg.matrix_rank(centred, tol=1e-6) < law.num_inputs:
        raise CannotFit(
            f"{' and '.join(law.inputs)} rise in lockstep in these runs, so their "
            f"terms cannot be separated; add runs with another ratio of the two."
        )


def require_columns(table: pd.DataFrame, names: Iterable[str]) -> None:
    """Raises CannotFit if a table lacks columns, naming them and those it has."""
    missing = [name for name in names if name not in table]
    if missing:
        raise CannotFit(
            f"the runs table has no column {', '.join(missing)}; it has "
            f"{', '.join(map(str, table.columns))}."
        )


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    """A column, or CannotFit if the table lacks it."""
    require_columns(table, [name])
    return table[name]
