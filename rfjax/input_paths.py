# SPDX-License-Identifier: Apache-2.0
"""Paths of what a run reads: in a config.json they start at the folder that holds it.

Everywhere else relative paths start at the current folder. So a run that is moved
together with its data, or read from another folder, still finds it. Absolute paths
stay as they are.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rfjax.schema import Kinds, kinds_of
from rfjax.value_types import Input, hints_of, rules_of


def to_folder(cls: type, values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Plain values as a config.json in a folder has them.

    Args:
      cls: the config dataclass that the values are of.
      values: field name -> value, with paths that start at the current folder.
      folder: of the config.json; may be missing.
    """
    start = Path(folder).resolve()

    def moved(path: str) -> str:
        """The path, seen from the folder."""
        if os.path.isabs(path) and not Path(path).resolve().is_relative_to(start):
            return path
        # A link to an input is kept, as it may be pointed elsewhere.
        given = (
            Path(path) if Path(path).name not in ("", "..") else Path(path).resolve()
        )
        return os.path.relpath(given.parent.resolve() / given.name, start)

    return _map_paths(cls, values, moved)


def from_folder(cls: type, values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The plain values of a config.json, with paths that start at the current folder.

    Args:
      cls: the config dataclass that the values are to become; they need not be valid.
      values: field name -> value.
      folder: that holds the config.json.
    """
    start = Path(folder).resolve()

    def moved(path: str) -> str:
        """The path, seen from the current folder."""
        found = os.path.join(start, path)
        # Up to 0.1.0 they started where training was called.
        if os.path.isabs(path) or (os.path.exists(path) and not os.path.exists(found)):
            return path
        return os.path.relpath(found)

    return _map_paths(cls, values, moved)


def _map_paths(
    cls: type, values: Mapping[str, Any], moved: Callable[[str], str]
) -> dict[str, Any]:
    """Plain values with every path of an input changed; all else stays as it is."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = hints_of(cls)

    def mapped(value: Any, hint: Any, kinds: Kinds | None) -> Any:
        """A value of a type, or a section of one of several kinds."""
        if isinstance(value, str) and _is_input(hint):
            return moved(value)
        if isinstance(value, list | tuple) and _is_input(hint):
            return [moved(path) if isinstance(path, str) else path for path in value]
        if isinstance(value, list | tuple) and kinds is not None:
            return [mapped(section, hint, kinds) for section in value]
        if isinstance(value, list | tuple):  # of sections that have no kinds
            return [mapped(element, _element_of(hint), None) for element in value]
        if not isinstance(value, Mapping):
            return value
        if kinds is not None:
            kind = value.get("kind", kinds.default)
            known = isinstance(kind, str) and kind in kinds.table
            hint = kinds.config(kind) if known else None
        return _map_paths(hint, value, moved) if _is_section(hint) else value

    return {
        name: mapped(value, hints[name], kinds_of(fields[name]))
        if name in fields
        else value
        for name, value in values.items()
    }


def _element_of(hint: Any) -> Any:
    """The type of the elements of a tuple of any length; None for any other type."""
    arguments = typing.get_args(hint)
    return arguments[0] if arguments[-1:] == (Ellipsis,) else None


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _is_input(hint: Any) -> bool:
    """Whether a type, a member of a union or an element is the path of an input."""
    members = (hint, *typing.get_args(hint))
    return any(isinstance(rule, Input) for each in members for rule in rules_of(each))
