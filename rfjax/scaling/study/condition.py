# SPDX-License-Identifier: Apache-2.0
"""Conditions on the columns of a table, as in `depth >= 2 and data == "emoji"`.

A small part of Python's grammar, read by Python's parser and computed here, so that a
condition can compare the columns of its table and do nothing else:

    condition   comparisons, and columns of True and False, joined by and, or, not
    comparison  values joined by ==, !=, <, <=, >, >=; a value in or not in [a list]
    value       a number, "a text", True, False, a column; + - * / ** of numbers
    column      its name; in backticks if that is no word: `val_ema/loss`

Parentheses group. A comparison with a missing value is false.
"""

from __future__ import annotations

import ast
import functools
import operator
import re
import warnings

import numpy as np
import pandas as pd

from rfjax.errors import UserError

_COMPARISONS = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
    ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_ARITHMETIC = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.Pow: operator.pow,
    ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip
_JOINTS = {ast.And: operator.and_, ast.Or: operator.or_}
_KINDS = {  # of pandas -> ours
    "boolean": "true or false",
    "integer": "a number",
    "floating": "a number",
    "mixed-integer-float": "a number",
}
_MAX_LENGTH = 1000  # of characters; parsers give up at a depth of nesting
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'|`([^`]*)`")


class _Refused(Exception):
    """Why a condition cannot be computed."""


def rows_that_meet(condition: str, table: pd.DataFrame) -> pd.Series:
    """Whether each row of a table meets a condition.

    Args:
      condition: as described above.
      table: its columns are what the condition may name.

    Returns: [n] bool.
    Raises: UserError, with the columns of the table, if it is no such condition.

    Example:
      >>> table = pd.DataFrame({"depth": [1, 2, 3], "data": ["a", "a", "b"]})
      >>> rows_that_meet('depth >= 2 and data in ["a"]', table).tolist()
      [False, True, False]
    """
    try:
        tree, columns = _parse(condition)
        return _Rows(table, columns).truth(tree)
    except (_Refused, ArithmeticError, RecursionError) as error:
        raise UserError(
            "where must be a condition on columns, such as 'depth >= 2 and seed in "
            f"[0, 1]', got {condition!r}: {error}; the columns are "
            f"{', '.join(map(str, table.columns))}."
        ) from error


def _parse(condition: str) -> tuple[ast.expr, dict[str, str]]:
    """The tree of a condition, and the columns that stand in it under other names."""
    if len(condition) > _MAX_LENGTH:
        raise _Refused(f"it has more than {_MAX_LENGTH} characters")
    columns: dict[str, str] = {}

    def name_column(quoted: re.Match) -> str:
        """A column in backticks as a word that Python's parser takes."""
        if quoted[1] is None:
            return quoted[0]
        columns[f"_column_{len(columns)}"] = quoted[1]
        return list(columns)[-1]

    source = _QUOTED.sub(name_column, condition).strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused below
            tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError) as error:
        raise _Refused(getattr(error, "msg", "it cannot be parsed")) from error
    if not any(isinstance(node, ast.Name) for node in ast.walk(tree)):
        raise _Refused("it names no column")
    return tree, columns


class _Rows:
    """Computes the nodes of a condition, each as one value per row of a table."""

    def __init__(self, table: pd.DataFrame, columns: dict[str, str]):
        self._table = table
        self._columns = columns

    def truth(self, node: ast.expr) -> pd.Series:
        """A condition; what is missing is false."""
        found = self._of_kind(node, "true or false")
        return found.astype(object).where(found.notna(), False).astype(bool)

    def _number(self, node: ast.expr) -> pd.Series:
        return self._of_kind(node, "a number").astype(float)

    def _of_kind(self, node: ast.expr, kind: str) -> pd.Series:
        found = self._value(node)
        if _kind(found) not in (kind, "missing"):
            raise _Refused(f"{self._spell(node)} must be {kind}, it is {_kind(found)}")
        return found

    def _value(self, node: ast.expr) -> pd.Series:
        match node:
            case ast.Name():
                return self._column(self._columns.get(node.id, node.id))
            case ast.Constant(value=bool() | str()):
                return pd.Series(node.value, index=self._table.index)
            case ast.Constant(value=int() | float()):
                return pd.Series(float(node.value), index=self._table.index)
            case ast.BoolOp():
                parts = [self.truth(part) for part in node.values]
                return functools.reduce(_JOINTS[type(node.op)], parts)
            case ast.UnaryOp(op=ast.Not()):
                return ~self.truth(node.operand)
            case ast.UnaryOp() if type(node.op) in _ARITHMETIC:
                return _ARITHMETIC[type(node.op)](self._number(node.operand))
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                left, right = self._number(node.left), self._number(node.right)
                with np.errstate(all="ignore"):
                    return _ARITHMETIC[type(node.op)](left, right)
            case ast.Compare():
                sides = [node.left, *node.comparators]
                parts = map(self._comparison, node.ops, sides, sides[1:])
                return functools.reduce(operator.and_, parts)
            case (
                ast.BinOp(op=ast.BitAnd() | ast.BitOr()) | ast.UnaryOp(op=ast.Invert())
            ):
                raise _Refused("conditions are joined by and, or, not, not by & | ~")
        raise _Refused(f"{self._spell(node)} is not part of a condition")

    def _column(self, name: str) -> pd.Series:
        if name not in self._table:
            raise _Refused(f"there is no column {name!r}")
        return self._table[name]

    def _comparison(
        self, operation: ast.cmpop, left: ast.expr, right: ast.expr
    ) -> pd.Series:
        """One comparison, false where a side is missing."""
        if isinstance(operation, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple):
                raise _Refused(f"{self._spell(right)} must be a list such as [1, 2]")
            nothing = pd.Series(False, index=self._table.index)
            equal = [self._comparison(ast.Eq(), left, item) for item in right.elts]
            found = functools.reduce(operator.or_, equal, nothing)
            known = self._value(left).notna()
            return known & ~found if isinstance(operation, ast.NotIn) else found
        if type(operation) not in _COMPARISONS:
            raise _Refused("values are compared by == and !=, not by is")
        values = self._value(left), self._value(right)
        kinds = [_kind(value) for value in values]
        if "missing" in kinds:
            return pd.Series(False, index=self._table.index)
        if kinds[0] != kinds[1]:
            raise _Refused(
                f"{self._spell(left)} is {kinds[0]}, {self._spell(right)} {kinds[1]}"
            )
        known = values[0].notna() & values[1].notna()
        if "a text" in kinds:
            values = [value.astype(str) for value in values]
        return known & _COMPARISONS[type(operation)](*values).astype(bool)

    def _spell(self, node: ast.expr) -> str:
        """A node as it was written, in one line."""
        text = ast.unparse(node)
        for word, column in self._columns.items():
            text = re.sub(rf"\b{word}\b", lambda _, c=column: f"`{c}`", text)
        return " ".join(text.split())


def _kind(values: pd.Series) -> str:
    """What a column holds: "a text" if it holds several kinds of values."""
    if values.isna().all():
        return "missing"
    return _KINDS.get(pd.api.types.infer_dtype(values, skipna=True), "a text")
