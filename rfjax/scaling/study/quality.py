# SPDX-License-Identifier: Apache-2.0
"""Which rows of a runs table may be fitted, and why not the others."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rfjax.errors import UserError
from rfjax.scaling.laws.points import require_columns

# What rows must have in common for their losses to be comparable.
COMPARABLE = ("validation_protocol", "data", "data_hash")


def mark_unusable(
    table: pd.DataFrame, *, loss: str, inputs: tuple[str, ...]
) -> pd.DataFrame:
    """Writes into `reason` why a row cannot be fitted; the rest stays as it is.

    Args:
      table: a runs table.
      loss: column of the loss.
      inputs: columns that must be positive numbers and that, with run and seed,
        name a cell of the study.

    Raises: UserError if a column is missing.
    """
    require_columns(table, [loss, *inputs])
    table = table.copy()
    for name in (loss, *inputs):
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
    _mark(table, ~np.isfinite(table[loss]), f"{loss} is not a finite number")
    _mark(table, table[loss] < 0, f"{loss} is negative")
    _mark(table, table[loss] == 0, f"{loss} is zero")
    for name in inputs:
        positive = np.isfinite(table[name]) & (table[name] > 0)
        _mark(table, ~positive, f"{name} is not a positive number")
    _mark_repeated_cells(table, loss=loss, inputs=inputs)
    return table


def mark_unwanted(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Writes into `reason` of the rows that a condition leaves out.

    Args:
      table: a runs table.
      where: condition on its columns, as "depth >= 2 and samples > 5000".

    Raises: UserError if it is no such condition.
    """
    try:
        wanted = table.eval(where)
        if not pd.api.types.is_bool_dtype(wanted):
            raise TypeError("it is not true or false for each row")
    except Exception as error:  # whatever pandas' parser raises
        raise UserError(
            f"where must be a condition on columns such as 'depth >= 2', got "
            f"{where!r}: {error}."
        ) from error
    table = table.copy()
    _mark(table, ~wanted, f"left out: not {where}")
    return table


def fitted_rows(table: pd.DataFrame, *, mid_run: bool = False) -> pd.DataFrame:
    """The rows a law may be fitted to: no reason against, learning rate cooled down.

    Raises: UserError if they mix validation protocols or data sets.
    """
    usable = table["reason"] == ""
    rows = table[usable if mid_run else usable & table["cooldown_end"].astype(bool)]
    check_comparable(rows)
    return rows


def excluded_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with a reason not to be fitted."""
    return table[table["reason"] != ""]


def check_comparable(table: pd.DataFrame) -> None:
    """Refuses rows whose losses were not measured alike.

    Raises: UserError naming the values and one run of each.
    """
    for column in COMPARABLE:
        if column not in table:
            continue
        values = _as_text(table[column], missing="unknown")
        if values.nunique() > 1:
            names = table["run"] if "run" in table else table.index.astype(str)
            examples = ", ".join(
                f"{value} ({(values == value).sum()} rows, such as run "
                f"{names[values == value].iloc[0]})"
                for value in sorted(values.unique())
            )
            raise UserError(
                f"the rows mix several values of {column}: {examples}; their losses "
                "cannot be compared, fit each separately."
            )


def _as_text(column: pd.Series, *, missing: str) -> pd.Series:
    return column.astype(object).where(column.notna(), missing).astype(str)


def _mark(table: pd.DataFrame, rows: pd.Series | np.ndarray, reason: str) -> None:
    """Gives rows a reason unless they already have one."""
    table.loc[rows & (table["reason"] == ""), "reason"] = reason


def _mark_repeated_cells(
    table: pd.DataFrame, *, loss: str, inputs: tuple[str, ...]
) -> None:
    """A cell given twice is copied (keep the first) or contradictory (keep none)."""
    names = [name for name in ("run", "seed") if name in table]
    # The same cell may have been trained twice in two folders: then the names of the
    # runs say nothing, their config and seed do.
    if "config_hash" in table:
        names = [name for name in ("config_hash", "seed") if name in table]
    cell = [*inputs, *names]
    usable = table[table["reason"] == ""]
    for _, rows in usable.groupby(cell, dropna=False, sort=False):
        if len(rows) == 1:
            continue
        if rows[loss].nunique() == 1:
            copies = table.index.isin(rows.index[1:])
            _mark(table, copies, f"repeats row {rows.index[0]}: same cell, same {loss}")
        else:
            values = ", ".join(f"{value:g}" for value in rows[loss])
            _mark(
                table,
                table.index.isin(rows.index),
                f"one cell with several losses ({values}); a column run or seed "
                "would tell repeated runs apart",
            )
