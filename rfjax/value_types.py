# SPDX-License-Identifier: Apache-2.0
"""Types of what config fields and flags hold: each declares which values are allowed.

    num_steps: PositiveInt = 50
    guidance_scale: NonNegativeFloat | None = None
    workdir: LocalPath

A type is a plain one with a rule beside it. `check` applies the rules of a type to a
value, `check_fields` those of a config dataclass to its fields, and `checked` those of
a function to its arguments. `schema.build`, the command line and the commands call
them, so that no value is used before its rule has been checked.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from rfjax.errors import UserError


@runtime_checkable
class Rule(Protocol):
    """What a type allows; it stands in the type's `Annotated`."""

    def __str__(self) -> str:
        """What is allowed, in words, as "at least 1"."""

    def check(self, value: Any, *, name: str) -> Any:
        """The value to use.

        Args:
          value: of the plain type.
          name: what the user calls the field or flag.

        Raises:
          UserError: the value is not allowed.
        """


@dataclasses.dataclass(frozen=True)
class Bounds:
    """A finite number between two bounds.

    Attributes:
      low: least value; -inf: there is none.
      high: largest value; inf: there is none.
      open_low: whether `low` itself is excluded.
      open_high: whether `high` itself is excluded.
      besides: a value outside of the bounds that is allowed as well, and its meaning.
      remedy: what to do instead.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    besides: tuple[int, str] | None = None
    remedy: str = "choose for example 1"

    def __str__(self) -> str:
        if self.besides is not None:
            value, meaning = self.besides
            return f"{dataclasses.replace(self, besides=None)}, or {value} {meaning}"
        low, high = _number(self.low), _number(self.high)
        if self.low == -math.inf and self.high == math.inf:
            return "finite"
        if self.high == math.inf:
            if self.open_low:
                return "positive" if self.low == 0 else f"above {low}"
            return f"at least {low}"
        if self.low == -math.inf:
            return f"below {high}" if self.open_high else f"at most {high}"
        if not self.open_low and not self.open_high:
            return f"between {low} and {high}"
        brackets = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {brackets[0]}{low}, {high}{brackets[1]}"

    def check(self, value: float, *, name: str) -> float:
        """The value; see `Rule`."""
        if self.besides is not None and value == self.besides[0]:
            return value
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        if not (above and below):
            raise UserError(f"{name} must be {self}, got {value}; {self.remedy}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} must be finite, got {value}; {self.remedy}.")
        return value


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of several names.

    Attributes:
      names: those allowed; a table is read when a value is checked.
    """

    names: Collection[str] = dataclasses.field(hash=False)

    def __str__(self) -> str:
        return f"{'one of ' * (len(self.names) > 1)}{', '.join(self.names)}"

    def check(self, value: str, *, name: str) -> str:
        """The value; see `Rule`."""
        if value not in self.names:
            near = difflib.get_close_matches(str(value), self.names, n=1)
            hint = f"did you mean {near[0]}?" if near else "choose another."
            raise UserError(f"{name} must be {self}, got {value!r}; {hint}")
        return value


@dataclasses.dataclass(frozen=True)
class Filled:
    """Text that is not blank and can be written to a file."""

    def __str__(self) -> str:
        return "not empty"

    def check(self, value: str, *, name: str) -> str:
        """The value; see `Rule`."""
        if not value.strip():
            raise UserError(f"{name} must not be empty, got {value!r}; give a value.")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"{name} must be valid UTF-8, got {value!a}; correct its encoding."
            ) from None
        return value


@dataclasses.dataclass(frozen=True)
class Local:
    """A path on a disk of this machine; `~` and `~user` become the home folder.

    Environment variables are the shell's business: `$` is a letter like any other.
    """

    def __str__(self) -> str:
        return "a local path"

    def check(self, value: Path | str, *, name: str) -> Path | str:
        """The path, of the type it came in; see `Rule`."""
        text = Filled().check(str(value), name=name)
        if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+", text):
            slashes = "///" if scheme[1] == "file" else "//"  # pathlib drops some
            url = f"{scheme[1]}:{slashes}{text[scheme.end() :]}"
            raise UserError(
                f"{name} must be a path on this machine, got {url!r}; copy it here or "
                "mount it, and name the local path."
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(
                f"{name} must be in UTF-8, got {text!r}; rename the file or folder."
            )
        if "\0" in text or any(len(part.encode()) > 255 for part in Path(text).parts):
            shown = text if len(text) <= 80 else f"{text[:60]}..."
            raise UserError(
                f"{name} must have names of at most 255 bytes and no zero byte, got "
                f"{shown!r}; choose another name."
            )
        try:
            expanded = Path(text).expanduser()
        except RuntimeError:  # no such user, or a user without home
            raise UserError(
                f"{name} must begin with the home folder of a known user, got "
                f"{text!r}; write the folder itself, or ./{text}."
            ) from None
        return type(value)(expanded) if text.startswith("~") else value


@dataclasses.dataclass(frozen=True)
class Input(Local):
    """A local path of what a run reads; in a config.json it starts at its folder."""


_SMALLER = "choose a smaller number"
_INT32 = Bounds(high=2**31, open_high=True, remedy=_SMALLER)
_INT64 = Bounds(high=2**63, open_high=True, remedy=_SMALLER)

Seed = Annotated[
    int, Bounds(0, 2**32, open_high=True, remedy="choose for example 0")
]  # fmt: skip
PositiveInt = Annotated[int, Bounds(1), _INT32]
NaturalInt = Annotated[int, Bounds(0, remedy="choose for example 0"), _INT32]
Size = Annotated[int, Bounds(1), Bounds(high=2**20, remedy=_SMALLER)]  # of a dim
ThreadCount = Annotated[int, Bounds(0, 1024, remedy="choose for example 16")]
BatchCount = Annotated[
    int, Bounds(1), Bounds(high=1024, remedy="choose for example 16")
]
LargeCount = Annotated[int, Bounds(1), _INT64]  # samples, FLOPs, bytes
PositiveFloat = Annotated[float, Bounds(0, open_low=True)]
NonNegativeFloat = Annotated[float, Bounds(0, remedy="choose for example 0")]
Fraction = Annotated[float, Bounds(0, 1, remedy="choose for example 0.1")]
OpenFraction = Annotated[
    float, Bounds(0, 1, True, True, remedy="choose for example 0.1")
]
ProperFraction = Annotated[
    float, Bounds(0, 1, open_high=True, remedy="choose for example 0.9")
]
Real = Annotated[float, Bounds(remedy="choose for example 0")]
Text = Annotated[str, Filled()]
LocalPath = Annotated[Path | str, Local()]  # of a flag
StoredPath = Annotated[str, Local()]  # of a config, which is written as JSON
InputPath = Annotated[str, Input()]  # the same, of what a run reads


def check(value: Any, hint: Any, *, name: str) -> Any:
    """The value to use where a type is declared; paths are expanded.

    Args:
      value: of the plain type.
      hint: the type, with its rules; those of the elements of a tuple, a sequence or a
        mapping and of all types of a union but None apply as well.
      name: what the user calls the field or flag.

    Raises:
      UserError: a rule does not allow it.
    """
    if value is None:
        return None
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        value = check(value, arguments[0], name=name)
        for rule in rules_of(hint):
            value = rule.check(value, name=name)
        return value
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        for member in arguments:
            value = check(value, member, name=name)
        return value
    if isinstance(value, Mapping):
        for key, entry in value.items():
            check(entry, (arguments or (Any,))[-1], name=f"{name}: {key}")
        return value
    if _is_sequence(hint) and isinstance(value, list | tuple):
        elements = arguments[:1] * len(value)
        if Ellipsis not in arguments and len(arguments) == len(value):
            elements = arguments
        checked = type(value)(
            check(element, element_hint, name=name)
            for element, element_hint in zip(value, elements, strict=True)
        )
        return value if checked == value else checked
    return value


def check_fields(config: Any, *, section: str = "") -> None:
    """Applies the rules of a config dataclass to its fields, in its `__post_init__`.

    Args:
      config: a frozen instance; paths in it are expanded.
      section: its name in a run's config, for errors; empty: the config itself.

    Raises:
      UserError: a rule does not allow a field.
    """
    prefix = f"{section}." if section else ""
    for name, hint in hints_of(type(config)).items():
        given = getattr(config, name)
        value = check(given, hint, name=prefix + name)
        if value is not given:
            object.__setattr__(config, name, value)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that applies the rules of its parameters to every call's arguments.

    Raises:
      UserError: by the result, if a rule does not allow an argument.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        """Calls the function with checked arguments."""
        bound = signature.bind(*args, **kwargs)
        hints = typing.get_type_hints(function, include_extras=True)
        for name, value in bound.arguments.items():
            if name in hints:
                bound.arguments[name] = check(value, hints[name], name=name)
        return function(*bound.args, **bound.kwargs)

    return call


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """The types of a dataclass' fields, with their rules."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def rules_of(hint: Any) -> tuple[Rule, ...]:
    """The rules beside a plain type, outermost level only."""
    metadata = getattr(hint, "__metadata__", ())
    return tuple(each for each in metadata if isinstance(each, Rule))


def _is_sequence(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def _number(value: float) -> str:
    """A bound in words: 2^31 rather than its digits."""
    if isinstance(value, int) and value >= 2**16 and value & (value - 1) == 0:
        return f"2^{value.bit_length() - 1}"
    return f"{value:g}"
