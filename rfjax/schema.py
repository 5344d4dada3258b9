# SPDX-License-Identifier: Apache-2.0
"""From plain values to config dataclasses and back: wrong names and types are errors.

A field that holds one of several configs, such as a data source, is declared with
`one_of(TABLE)`, one that holds several with `many_of(TABLE)`; a section says which it
is by `kind`.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import docstring_parser

from rfjax.errors import UserError


def build(cls: type, values: Mapping[str, Any], *, prefix: str = "") -> Any:
    """Builds a config dataclass from plain values, checking names and types.

    Args:
      cls: a dataclass of plain fields, tuples and further dataclasses.
      values: field name -> value; whole numbers may stand for real ones, lists for
        tuples.
      prefix: what errors put before a field's name, such as "grid.".

    Raises:
      UserError: a field is unknown, missing or of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise UserError(_unknown_field(prefix + name, prefix, fields))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING
        if required and field.default_factory is dataclasses.MISSING:
            if name not in values:
                raise UserError(f"{prefix}{name} must be set, and is missing; add it.")
    hints = typing.get_type_hints(cls)
    return cls(
        **{
            name: _convert(value, hints[name], name=prefix + name)
            if _KINDS not in fields[name].metadata
            else _build_kinds(value, fields[name].metadata, name=prefix + name)
            for name, value in values.items()
        }
    )


def one_of(
    table: Mapping[str, Any], *, default: str | None = None, required: bool = False
) -> Any:
    """A dataclass field that holds one of the configs of a table.

    In a config file it is a section with the field `kind`, a key of the table, beside
    the fields of that config.

    Args:
      table: kind -> config dataclass, or a row whose attribute `config` it is. It is
        read when a config is built, so a member added to it later counts.
      default: the kind of a section that names none; None: a kind must be given.
      required: whether the section must be there; else it is, when left out, the
        default kind with its defaults.
    """
    metadata = {_KINDS: table, _DEFAULT_KIND: default}
    if default is None or required:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(
        default_factory=lambda: _config_class(table[default])(), metadata=metadata
    )


def many_of(table: Mapping[str, Any], *, default: Sequence[str] = ()) -> Any:
    """A dataclass field that holds a tuple of configs of a table; see `one_of`.

    In a config file it is a list of sections.

    Args:
      table: as in `one_of`.
      default: kinds of a field that is left out, each with its defaults.
    """
    return dataclasses.field(
        default_factory=lambda: tuple(_config_class(table[kind])() for kind in default),
        metadata={_KINDS: table, _IS_LIST: True},
    )


def build_kind(
    table: Mapping[str, Any], value: Any, *, name: str, default: str | None = None
) -> Any:
    """Builds the config of a table that a section names by its `kind`.

    Args:
      table: kind -> config dataclass, or a row whose attribute `config` it is.
      value: the section, or a config of the table that is built already.
      name: of the section, for errors.
      default: the kind of a section that names none.

    Raises:
      UserError: no such kind, or wrong fields.
    """
    if isinstance(value, tuple(map(_config_class, table.values()))):
        return value
    if not isinstance(value, Mapping):
        raise UserError(f"{name} must be a section of fields, got {value!r}.")
    kind = value.get("kind", default)
    if kind not in table:
        near = difflib.get_close_matches(str(kind), table, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(
            f"{name}.kind must be one of {', '.join(table)}, got {kind!r}{hint}"
        )
    fields = {field: entry for field, entry in value.items() if field != "kind"}
    return build(_config_class(table[kind]), fields, prefix=f"{name}.")


def _build_kinds(value: Any, metadata: Mapping[str, Any], *, name: str) -> Any:
    """The config, or the tuple of them, of a field declared by a table."""
    table = metadata[_KINDS]
    if _IS_LIST not in metadata:
        return build_kind(table, value, name=name, default=metadata[_DEFAULT_KIND])
    if not isinstance(value, list | tuple):
        raise UserError(f"{name} must be a list of sections, got {value!r}.")
    return tuple(
        build_kind(table, section, name=f"{name}[{i}]")
        for i, section in enumerate(value)
    )


def _config_class(row: Any) -> type:
    return row if isinstance(row, type) else row.config


def to_dict(config: Any) -> dict[str, Any]:
    """The inverse of `build`: plain values, lists for tuples, with every `kind`."""
    return {
        field.name: _plain(getattr(config, field.name), field.metadata)
        for field in dataclasses.fields(config)
    }


_KINDS, _DEFAULT_KIND, _IS_LIST = "kinds", "default_kind", "is_list"  # field metadata


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
      cls: as for `build`.
      values: as for `build`; may be incomplete, and only its names are checked.
      prefix: as for `build`.

    Raises:
      UserError: a field is unknown.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in known:
            raise UserError(_unknown_field(prefix + name, prefix, known))
    hints = typing.get_type_hints(cls)
    texts = docstring_parser.parse(cls.__doc__).params
    texts = {p.arg_name: " ".join((p.description or "").split()) for p in texts}
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not MISSING and _KINDS not in field.metadata:
            default = field.default_factory()
        value = values.get(field.name, default)
        info = FieldInfo(
            name=prefix + field.name,
            text=texts.get(field.name, ""),
            value=value,
            default=default,
            type=_type_name(hints[field.name]),
            is_section=False,
        )
        section, kinds = _section_of(field, hints[field.name], value)
        if section is None and not kinds:
            yield info
            continue
        yield dataclasses.replace(info, type=kinds or "section", is_section=True)
        if section is not None:
            fields = value if isinstance(value, Mapping) else {}
            if dataclasses.is_dataclass(value):
                fields = to_dict(value)
            if _KINDS in field.metadata:
                fields = {name: v for name, v in fields.items() if name != "kind"}
            yield from describe(section, fields, prefix=f"{prefix}{field.name}.")


def _section_of(
    field: dataclasses.Field, hint: Any, value: Any
) -> tuple[type | None, str]:
    """The config dataclass of a section, and the kinds that it may be of."""
    if _KINDS in field.metadata:
        table = field.metadata[_KINDS]
        kind = field.metadata[_DEFAULT_KIND]
        if isinstance(value, Mapping):
            kind = value.get("kind", kind)
        for name, cls in table.items():
            if isinstance(value, cls):
                kind = name
        return table.get(kind), f"kind {kind}, one of {', '.join(table)}"
    section = hint if dataclasses.is_dataclass(hint) else None
    return section, ""


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is None and isinstance(hint, type):
        return hint.__name__
    return str(hint).replace("typing.", "").replace("| None", "or None")


_KINDS, _DEFAULT_KIND = "kinds", "default_kind"  # in the metadata of a field


def _build_one_of(value: Any, metadata: Mapping[str, Any], *, name: str) -> Any:
    table = metadata[_KINDS]
    if isinstance(value, tuple(table.values())):
        return value
    if not isinstance(value, Mapping):
        raise UserError(f"{name} must be a section of fields, got {value!r}.")
    kind = value.get("kind", metadata[_DEFAULT_KIND])
    if kind not in table:
        near = difflib.get_close_matches(str(kind), table, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(
            f"{name}.kind must be one of {', '.join(table)}, got {kind!r}{hint}"
        )
    fields = {field: entry for field, entry in value.items() if field != "kind"}
    return build(table[kind], fields, prefix=f"{name}.")


def _plain(value: Any, metadata: Mapping[str, Any]) -> Any:
    if dataclasses.is_dataclass(value):
        if _KINDS not in metadata:
            return to_dict(value)
        kinds = {_config_class(row): kind for kind, row in metadata[_KINDS].items()}
        return {"kind": kinds[type(value)], **to_dict(value)}
    if isinstance(value, list | tuple):
        return [_plain(element, metadata) for element in value]
    return value


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
            raise UserError(f"{name} must be a section of fields, got {value!r}.")
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
            raise UserError(
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
        raise UserError(
            f"{name} must be of type {hint.__name__}, got {value!r} "
            f"({type(value).__name__})."
        )
    return value
