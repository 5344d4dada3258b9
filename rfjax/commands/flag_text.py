# SPDX-License-Identifier: Apache-2.0
"""The text behind a flag, as a value of the flag's type; rules are checked later."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rfjax.errors import UserError
from rfjax.value_types import Filled, OneOf

UNNAMED = "the value"  # a converter is not told which flag it reads
_WHOLE = re.compile(r"[+-]?[0-9]{1,40}")  # cyclopts would round 2.5
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?inf|nan")


def read(hint: Any, tokens: Sequence[Any]) -> Any:
    """The value of a flag; the default converter of every flag that has no own.

    Args:
      hint: type of the flag, without None.
      tokens: cyclopts' tokens: what was written, and behind which flag.

    Raises:
      UserError: the text is empty, or none of the type; begins with `UNNAMED`.
    """
    element, *_ = typing.get_args(hint) or (str,)
    if typing.get_origin(hint) in (list, tuple, Sequence):
        return [read(element, [token]) for token in tokens]
    (token,) = tokens
    text = Filled().check(token.value, name=UNNAMED)
    if typing.get_origin(hint) is typing.Annotated:
        return read(element, tokens)
    if typing.get_origin(hint) is Literal:
        return OneOf(typing.get_args(hint)).check(text, name=UNNAMED)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return Path(text)  # all other unions are those with None
    if hint is int:
        return whole_number(text, name=UNNAMED)
    return number(text, name=UNNAMED) if hint is float else hint(text)


def whole_number(text: str, *, name: str) -> int:
    """The whole number that a text is.

    Raises:
      UserError: it is none.
    """
    if not _WHOLE.fullmatch(text):
        raise UserError(
            f"{name} must be a whole number, got {text!r}; write it in digits."
        )
    return int(text)


def number(text: str, *, name: str) -> float:
    """The number that a text is, such as 1e20.

    Raises:
      UserError: it is none.
    """
    if not _DECIMAL.fullmatch(text.lower()):
        raise UserError(f"{name} must be a number such as 1e20, got {text!r}.")
    return float(text)
