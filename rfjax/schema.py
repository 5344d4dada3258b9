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
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from rfjax.errors import UserError
from rfjax.value_types import hints_of, rules_of


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
    if not isinstance(values, Mapping):
        section = prefix.rstrip(".") or "a config"
        raise UserError(
            f"{section} must be a section of fields, got {shown(values)}; set its "
            "fields one by one."
        )
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise UserError(unknown_field(prefix + name, prefix, fields))
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING
        if required and field.default_factory is dataclasses.MISSING:
            if name not in values:
                raise UserError(f"{prefix}{name} must be set, and is missing; add it.")
    hints = hints_of(cls)
    return cls(
        **{
            name: convert(value, hints[name], name=prefix + name)
            if kinds_of(fields[name]) is None
            else build_kinds(value, kinds_of(fields[name]), name=prefix + name)
            for name, value in values.items()
        }
    )


@dataclasses.dataclass(frozen=True)
class Kinds:
    """The configs that a field may hold.

    Attributes:
      table: kind -> config dataclass, or a row whose attribute `config` it is.
      default: the kind of a section that names none; None: a kind must be given.
      is_list: whether the field holds several of them.
    """

    table: Mapping[str, Any]
    default: str | None = None
    is_list: bool = False

    def config(self, kind: str) -> type:
        """The config dataclass of a kind."""
        return _config_class(self.table[kind])

    def kind_of(self, config: Any) -> str:
        """The kind of a config that is built already."""
        return next(k for k in self.table if self.config(k) is type(config))


def kinds_of(field: dataclasses.Field) -> Kinds | None:
    """The configs that a field declared by `one_of` or `many_of` may hold."""
    return field.metadata.get("kinds")


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
    kinds = Kinds(table, default)
    metadata = {"kinds": kinds}
    if default is None or required:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(
        default_factory=lambda: kinds.config(default)(), metadata=metadata
    )


def many_of(
    table: Mapping[str, Any], *, default: Sequence[str] = (), changeable: bool = False
) -> Any:
    """A dataclass field that holds a tuple of configs of a table; see `one_of`.

    In a config file it is a list of sections.

    Args:
      table: as in `one_of`.
      default: kinds of a field that is left out, each with its defaults.
      changeable: see `changeable`.
    """
    kinds = Kinds(table, is_list=True)
    return dataclasses.field(
        default_factory=lambda: tuple(kinds.config(kind)() for kind in default),
        metadata={"kinds": kinds, "changeable": changeable},
    )


def changeable(default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that may differ when a run resumes.

    It decides where, how fast and how often work is done, not what is learnt.

    Args:
      default: of the field, if it has one; frozen, like every default of a config.
    """
    return dataclasses.field(default=default, metadata={"changeable": True})


def changeable_fields(config: Any, *, prefix: str = "") -> tuple[str, ...]:
    """Names of a config's fields declared by `changeable`, with their sections.

    The name of a whole section ends with a dot.
    """
    names = []
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        is_section = dataclasses.is_dataclass(value)
        if field.metadata.get("changeable"):
            names.append(f"{name}." if is_section else name)
        elif is_section:
            names += changeable_fields(value, prefix=f"{name}.")
    return tuple(names)


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
        raise UserError(
            f"{name} must be a section of fields, got {shown(value)}; set its fields, "
            f"as {name}.kind = {next(iter(table))}."
        )
    kind = value.get("kind", default)
    check_kind(table, kind, name=name)
    fields = {field: entry for field, entry in value.items() if field != "kind"}
    return build(_config_class(table[kind]), fields, prefix=f"{name}.")


def check_kind(table: Mapping[str, Any], kind: Any, *, name: str) -> None:
    """Raises UserError, naming the nearest, if a kind is none of a table's."""
    if not isinstance(kind, str) or kind not in table:
        near = difflib.get_close_matches(str(kind), table, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(
            f"{name}.kind must be one of {', '.join(table)}, got {kind!r}{hint}"
        )


def build_kinds(value: Any, kinds: Kinds, *, name: str) -> Any:
    """The config, or the tuple of them, of a field declared by a table.

    Raises:
      UserError: no section, no such kind, or wrong fields.
    """
    if not kinds.is_list:
        return build_kind(kinds.table, value, name=name, default=kinds.default)
    if not isinstance(value, list | tuple):
        raise UserError(
            f"{name} must be a list of sections, got {shown(value)}; write "
            f"[{{'kind': {next(iter(kinds.table))!r}}}]."
        )
    return tuple(
        build_kind(kinds.table, section, name=f"{name}[{i}]")
        for i, section in enumerate(value)
    )


def _config_class(row: Any) -> type:
    return row if isinstance(row, type) else row.config


def to_dict(config: Any) -> dict[str, Any]:
    """The inverse of `build`: plain values, lists for tuples, with every `kind`."""
    return {
        field.name: plain(getattr(config, field.name), kinds_of(field))
        for field in dataclasses.fields(config)
    }


def plain(value: Any, kinds: Kinds | None) -> Any:
    """The value of a field as a config file would have it; `kinds` are the field's."""
    if dataclasses.is_dataclass(value):
        kind = {} if kinds is None else {"kind": kinds.kind_of(value)}
        return {**kind, **to_dict(value)}
    if isinstance(value, list | tuple):
        return [plain(element, kinds) for element in value]
    return value


def unknown_field(name: str, prefix: str, fields: Mapping[str, Any]) -> str:
    """The error for a field that does not exist, with the closest that do."""
    near = difflib.get_close_matches(name.removeprefix(prefix), fields, n=3)
    hint = f"did you mean {' or '.join(prefix + n for n in near)}?" if near else (
        f"the fields are {', '.join(prefix + n for n in fields)}."
    )  # fmt: skip
    return f"{name} is not a config field; {hint}"


def convert(value: Any, hint: Any, *, name: str) -> Any:
    """Checks one value against its type and its rules.

    Whole numbers become real ones, lists tuples, and paths lose their `~`.

    Raises:
      UserError: it is of another type, or not allowed.
    """
    if typing.get_origin(hint) is Annotated:
        value = convert(value, typing.get_args(hint)[0], name=name)
        for rule in rules_of(hint):
            value = rule.check(value, name=name)
        return value
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
        return convert(value, hint, name=name)
    if dataclasses.is_dataclass(value) and isinstance(value, hint):
        return value  # a section that its caller has chosen and built
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(
                f"{name} must be a section of fields, got {shown(value)}; set its "
                f"fields, as {name}.{next(iter(hints_of(hint)))}."
            )
        return build(hint, value, prefix=f"{name}.")
    if typing.get_origin(hint) is tuple:
        element_types = typing.get_args(hint)
        if element_types[-1] is Ellipsis and isinstance(value, list | tuple):
            element_types = element_types[:1] * len(value)
        if not isinstance(value, list | tuple) or len(value) != len(element_types):
            raise UserError(_no_list(name, value, element_types))
        return tuple(
            convert(element, element_type, name=f"{name}[{i}]")
            for i, (element, element_type) in enumerate(
                zip(value, element_types, strict=True)
            )
        )
    if typing.get_origin(hint) is Mapping:
        if not isinstance(value, Mapping):
            raise UserError(
                f"{name} must be a section, got {shown(value)}; correct it."
            )
        _, element_type = typing.get_args(hint)
        return {
            key: convert(element, element_type, name=f"{name}.{key}")
            for key, element in value.items()
        }
    if hint is Any:
        return value
    if hint is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    if type(value) is not hint:
        raise UserError(
            f"{name} must be {_TYPES.get(hint, hint.__name__)}, got {shown(value)} "
            f"({type(value).__name__}); correct it."
        )
    return value


_TYPES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
}


def _no_list(name: str, value: Any, element_types: Sequence[Any]) -> str:
    """The error for a value that is no list, or one of another length."""
    if isinstance(value, list | tuple):
        return (
            f"{name} must be a list of {len(element_types)}, got {shown(value)}, of "
            f"{len(value)}; give as many."
        )
    length = "" if element_types[-1] is Ellipsis else f" of {len(element_types)}"
    is_one = not isinstance(value, Mapping) and value is not None
    remedy = f"write [{value!r}]" if is_one and not length else "write [...]"
    return f"{name} must be a list{length}, got {shown(value)}; {remedy}."


def shown(value: Any) -> str:
    """A value as errors print it: in one line, and not all of a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:60]}..."
