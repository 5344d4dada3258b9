# SPDX-License-Identifier: Apache-2.0
"""Every field of a config for a reader: value, default, type and meaning."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import docstring_parser

from rfjax.errors import UserError
from rfjax.schema import (
    Kinds,
    build_kinds,
    check_kind,
    convert,
    kinds_of,
    plain,
    unknown_field,
)
from rfjax.value_types import hints_of, rules_of


@dataclasses.dataclass(frozen=True)
class FieldInfo:
    """One field of a config, for a reader.

    Attributes:
      name: with its sections, as "model.depth".
      text: its line in the docstring of its dataclass.
      value: in this config; `MISSING` if it must be set and is not.
      default: `MISSING` if it must be set.
      type: as it is annotated; for a section the kinds it may be of, or "section".
      is_section: whether it holds further fields, which follow it.
    """

    name: str
    text: str
    value: Any
    default: Any
    type: str
    is_section: bool


MISSING = dataclasses.MISSING


def describe(
    cls: type, values: Mapping[str, Any], *, prefix: str = ""
) -> Iterator[FieldInfo]:
    """All fields of a config dataclass with their values, sections before their fields.

    Args:
      cls: as for `schema.build`.
      values: as for `schema.build`; may be incomplete. Rules between fields are left
        to whoever builds the config.
      prefix: as for `schema.build`.

    Raises:
      UserError: a field is unknown, or its value not allowed.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in known:
            raise UserError(unknown_field(prefix + name, prefix, known))
    hints = hints_of(cls)
    texts = {
        parameter.arg_name: " ".join((parameter.description or "").split())
        for base in reversed(cls.__mro__)
        if base.__doc__
        for parameter in docstring_parser.parse(base.__doc__).params
    }
    for field in dataclasses.fields(cls):
        kinds = kinds_of(field)
        default = field.default
        if field.default_factory is not MISSING and (kinds is None or kinds.is_list):
            default = field.default_factory()
        value = values.get(field.name, default)
        if value is not default:
            _check_value(value, kinds, hints[field.name], name=prefix + field.name)
        section, type_name = _section_of(
            kinds, hints[field.name], value, name=prefix + field.name
        )
        yield FieldInfo(
            name=prefix + field.name,
            text=texts.get(field.name, ""),
            value=plain(value, kinds),
            default=plain(default, kinds),
            type=type_name,
            is_section=section is not None,
        )
        if section is not None:
            fields = {} if value is MISSING else plain(value, kinds)
            if kinds is not None:
                fields = {name: v for name, v in fields.items() if name != "kind"}
            yield from describe(section, fields, prefix=f"{prefix}{field.name}.")


def _check_value(value: Any, kinds: Kinds | None, hint: Any, *, name: str) -> None:
    """Raises UserError if a field that is no section does not allow a value."""
    if kinds is None and not dataclasses.is_dataclass(hint):
        convert(value, hint, name=name)
    elif kinds is not None and kinds.is_list:
        build_kinds(value, kinds, name=name)


def _section_of(
    kinds: Kinds | None, hint: Any, value: Any, *, name: str
) -> tuple[type | None, str]:
    """The config dataclass of a section, and the type of the field in words.

    Raises:
      UserError: the value of a section is none, or of no kind.
    """
    is_section = dataclasses.is_dataclass(hint) if kinds is None else not kinds.is_list
    is_given = value is not MISSING and not dataclasses.is_dataclass(value)
    if is_section and is_given and not isinstance(value, Mapping):
        raise UserError(f"{name} must be a section of fields, got {value!r}.")
    if kinds is None:
        if dataclasses.is_dataclass(hint):
            return hint, "section"
        return None, _type_name(hint)
    names = ", ".join(kinds.table)
    if kinds.is_list:
        return None, f"list of sections of kind {names}"
    kind = kinds.default
    if isinstance(value, Mapping):
        kind = value.get("kind", kind)
        if "kind" in value:
            check_kind(kinds.table, kind, name=name)
    section = kinds.config(kind) if kind in kinds.table else None
    return section, f"kind {kind}, one of {names}"


def _type_name(hint: Any) -> str:
    """A type in words, with the first rule beside it: "int, at least 1"."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        plain_type = _type_name(arguments[0])
        return ", ".join([plain_type, *map(str, rules_of(hint)[:1])])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return f"{_type_name(arguments[0])}, or None"
    if typing.get_origin(hint) is tuple:
        of_elements = "" if Ellipsis in arguments else f"{len(arguments)} "
        return f"list of {of_elements}{_type_name(arguments[0])}"
    return hint.__name__
