# SPDX-License-Identifier: Apache-2.0
"""Which rows of a runs table may be fitted, and why not the others."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from rfjax.errors import UserError
from rfjax.scaling.laws.points import require_columns
from rfjax.scaling.study.condition import rows_that_meet

# What rows must have in common for their losses to be comparable.
COMPARABLE = ("validation_protocol", "validation_samples", "data", "data_hash")
# Rows that differ in one of these are different cells of a study, whatever the law.
NUMBERS = ("depth", "params", "params_without_adaln", "samples", "train_flops")
IDENTITY = (*NUMBERS, "seed")

# A reason is one of a few kinds, and may go on after a colon with what is true of its
# row alone. Kinds, or their ends, with what to do about them:
SEVERAL_LOSSES = "one cell with several losses"
MID_RUN = "the learning rate has not cooled down"
OFF_FRONTIER = "a row that costs no more has a lower loss"
REMEDIES = {
    SEVERAL_LOSSES: "tell repeated runs apart by a column run or seed",
    MID_RUN: "--mid-run fits these rows too",
    "has a separator in it": "write numbers as 1000000.5 or 1e6",
    "is not a positive number": "correct the column, or name another by --columns",
    "is not a finite number": "correct the column, or name another by --loss",
    "the run diverged": "train it again at a lower learning rate",
    "no evaluation yet": "wait for the runs",
}
# 1,000,000 and 1 000 000 and 1'000'000 and 1_000_000, and 1,5.
_SEPARATED = re.compile(r"[+-]?\d+([,'’_\s]\d+)+(\.\d+)?([eE][+-]?\d+)?")


def mark_unusable(
    table: pd.DataFrame,
    *,
    loss: str,
    inputs: tuple[str, ...],
    where: str | None = None,
) -> pd.DataFrame:
    """Writes into `reason` why a row cannot be fitted; the rest stays as it is.

    Args:
      table: a runs table.
      loss: column of the loss.
      inputs: columns that must be positive numbers.
      where: condition on columns, as "depth >= 2"; rows that do not meet it are left
        out. The columns `loss` and `inputs` are numbers in it.

    Raises: UserError if a column is missing or `where` is no condition.
    """
    require_columns(table, [loss, *inputs])
    table = table.copy() if table.index.is_unique else table.reset_index(drop=True)
    written = table[[loss, *inputs]]
    for name in written:
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
    if where is not None:
        _mark(table, ~rows_that_meet(where, table), f"left out: not {where}")
    for name in written:
        texts = written[name].astype(str).str.strip()
        is_text = table[name].isna() & written[name].notna()
        separated = texts.str.fullmatch(_SEPARATED)
        rule = "is not a finite number" if name == loss else "is not a positive number"
        _mark(table, is_text & separated, f"{name} has a separator in it: " + texts)
        _mark(table, is_text, f"{name} {rule}: " + texts)
        _mark(table, ~np.isfinite(table[name]), f"{name} {rule}")
        if name != loss:
            _mark(table, table[name] <= 0, f"{name} {rule}")
    _mark(table, table[loss] < 0, f"{loss} is negative")
    _mark(table, table[loss] == 0, f"{loss} is zero")
    _mark_repeated_cells(table, loss=loss, inputs=inputs)
    for name in NUMBERS:
        if name in table:  # of use where it is known, and no reason to leave out a row
            table[name] = pd.to_numeric(table[name], errors="coerce")
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


def count_rows(
    table: pd.DataFrame, fitted: pd.DataFrame, *, with_remedies: bool = False
) -> str:
    """How many rows of a table were fitted, and how many not for which kind of reason.

    Args:
      table: marked rows, see `mark_unusable`.
      fitted: those of them that were fitted.
      with_remedies: whether to say what to do about each kind.

    Example:
      >>> table = pd.DataFrame({"reason": ["", "loss is zero", "loss is zero"]})
      >>> table["cooldown_end"] = True
      >>> count_rows(table, table[:1])
      "1 of 3 rows usable: 2 'loss is zero'"
    """
    kinds = [
        row.reason.partition(": ")[0] or (OFF_FRONTIER if row.cooldown_end else MID_RUN)
        for row in table[~table.index.isin(fitted.index)].itertuples()
    ]

    def describe(kind: str, count: int) -> str:
        """One kind of reason, with its remedies if wanted."""
        ends = [end for end in REMEDIES if with_remedies and kind.endswith(end)]
        return f"{count} '{kind}'" + "".join(f" ({REMEDIES[end]})" for end in ends)

    parts = [describe(kind, count) for kind, count in Counter(kinds).most_common()]
    text = f"{len(fitted)} of {len(table)} rows usable"
    return f"{text}: {', '.join(parts)}" if parts else text


def check_comparable(table: pd.DataFrame) -> None:
    """Refuses rows whose losses were not measured alike.

    Raises: UserError naming the values, the most frequent first, and their runs.
    """
    for column in COMPARABLE:
        if column not in table:
            continue
        values = table[column].map(as_text)
        if values.nunique() > 1:
            names = table["run"] if "run" in table else table.index.astype(str)
            found = ", ".join(
                f"{value} ({(values == value).sum()} rows: "
                f"{_some(names[values == value])})"
                for value in values.value_counts().index
            )
            raise UserError(
                f"the rows mix several values of {column}: {found}; their losses "
                "cannot be compared, fit each separately, as with "
                f'--where="{column} == {_literal(table[column])}".'
            )


def as_text(value: Any) -> str:
    """A value of a table in words: 64, though its column is one of floats."""
    if pd.isna(value):
        return "unknown"
    number = pd.to_numeric(value, errors="coerce")
    return f"{number:.12g}" if pd.notna(number) else str(value)


def _literal(column: pd.Series) -> str:
    """The most frequent value of a column, as a condition writes it."""
    value = column.mode().iloc[0]
    text = as_text(value)
    return f"'{text}'" if isinstance(value, str) else text


def _some(names: pd.Series) -> str:
    """Up to three different names."""
    names = list(dict.fromkeys(names.astype(str)))
    return ", ".join(names[:3]) + (", ..." if names[3:] else "")


def _mark(
    table: pd.DataFrame, rows: pd.Series | np.ndarray, reason: str | pd.Series
) -> None:
    """Gives rows a reason unless they already have one."""
    chosen = rows & (table["reason"] == "")
    table.loc[chosen, "reason"] = reason if isinstance(reason, str) else reason[chosen]


def _mark_repeated_cells(
    table: pd.DataFrame, *, loss: str, inputs: tuple[str, ...]
) -> None:
    """A cell given twice is copied (keep the first) or contradictory (keep none)."""
    # The same cell may have been trained twice in two folders: then the names of the
    # runs say nothing, their config and seed do.
    run = "config_hash" if "config_hash" in table else "run"
    cell = [name for name in dict.fromkeys([*inputs, *IDENTITY, run]) if name in table]
    usable = table[table["reason"] == ""]
    for _, rows in usable.groupby(cell, dropna=False, sort=False):
        if len(rows) == 1:
            continue
        if rows[loss].nunique() == 1:
            copies = table.index.isin(rows.index[1:])
            first = rows.index[0]
            _mark(table, copies, f"repeats an earlier row: row {first}, same {loss}")
        else:
            values = ", ".join(f"{value:g}" for value in rows[loss])
            _mark(table, table.index.isin(rows.index), f"{SEVERAL_LOSSES}: {values}")
