# SPDX-License-Identifier: Apache-2.0
"""From plain values to a config dataclass: every wrong name and type is an error."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any


def build(cls: type, values: Mapping[str, Any], *, prefix: str = "") -> Any:
    """Builds a config dataclass from plain values, checking names and types.

    Args:
      cls: a dataclass of plain fields, tuples and further dataclasses.
      values: field name -> value; whole numbers may stand for real ones, lists for
        tuples.
      prefix: what errors put before a field's name, such as "grid.".

    Raises:
      ValueError: a field is unknown, missing or of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise ValueError(_unknown_field(prefix + name, prefix, fields))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING
        if required and field.default_factory is dataclasses.MISSING:
            if name not in values:
                raise ValueError(f"{prefix}{name} must be set, and is missing; add it.")
    hints = typing.get_type_hints(cls)
    return cls(
        **{
            name: _convert(value, hints[name], name=prefix + name)
            for name, value in values.items()
        }
    )


def _unknown_field(name: str, prefix: str, fields: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name.removeprefix(prefix), fields, n=3)
    hint = f"did you mean {' or '.join(prefix + n for n in near)}?" if near else (
        f"the fields are {', '.join(prefix + n for n in fields)}."
    )  # fmt: skip
    return f"{name} is not a config field; {hint}"


def _convert(value: Any, hint: Any, *, name: str) -> Any:
    """Checks one value against its type; only int -> float and list -> tuple change."""
    if dataclasses.is_dataclass(value) and isinstance(value, hint):
        return value  # a section that its caller has chosen and built
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} must be a section of fields, got {value!r}.")
        return build(hint, value, prefix=f"{name}.")
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        element_types = typing.get_args(hint)
        if element_types[-1] is Ellipsis and isinstance(value, list | tuple):
            element_types = element_types[:1] * len(value)
        if not isinstance(value, list | tuple) or len(value) != len(element_types):
            raise ValueError(
                f"{name} must be a list of {len(element_types)}, got {value!r}."
            )
        return tuple(
            _convert(element, element_type, name=f"{name}[{i}]")
            for i, (element, element_type) in enumerate(
                zip(value, element_types, strict=True)
            )
        )
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(
            f"{name} must be of type {hint.__name__}, got {value!r} "
            f"({type(value).__name__})."
        )
    return value
