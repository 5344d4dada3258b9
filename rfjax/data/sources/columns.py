# SPDX-License-Identifier: Apache-2.0
"""Which named values of a row are its captions, licence and so on."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rfjax.data.sources.base import Entry
from rfjax.data.sources.pictures import BrokenPicture
from rfjax.errors import UserError
from rfjax.value_types import Text, check_fields

# Where captions are looked for if no column is named: in the first of these.
CAPTION_COLUMNS = ("txt", "caption", "text", "TEXT", "label")

_LOOKED_AT = 100  # rows, to learn the names of the columns

# Name of a split elsewhere -> the split here.
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(
        ("validation", "valid", "val", "dev", "eval", "test", "testing"), "validation"
    ),
}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns say what.

    A name with dots reaches into a value of parts: captions.0 is the first of several
    captions, meta.licence a field of an object.

    Attributes:
      captions: columns of the captions, one for each kind; by default the first of
        txt, caption, text, TEXT and label that exists.
      caption_kinds: what these captions are called, as ["original", "synthetic"].
      split: column of the split: train, or validation, val, valid, dev, eval or test.
      licence: column of the licence.
      attribution: column of the people to name.
      annotation: further columns that are stored with every example, such as an id.
    """

    captions: tuple[Text, ...] = ()
    caption_kinds: tuple[Text, ...] = ("original",)
    split: Text | None = None
    licence: Text | None = None
    attribution: Text | None = None
    annotation: tuple[Text, ...] = ()

    def __post_init__(self):
        check_fields(self, section="source.columns")
        kinds = self.caption_kinds
        if len(kinds) != max(1, len(self.captions)):
            raise UserError(
                "source.columns.caption_kinds must name each of the "
                f"{max(1, len(self.captions))} captions, got {list(kinds)}; give as "
                "many names as source.columns.captions."
            )
        for kind in kinds:
            if not kind.isidentifier() or kinds.count(kind) > 1:
                raise UserError(
                    "source.columns.caption_kinds must be Python identifiers that "
                    f"differ, got {list(kinds)}; write for example original."
                )

    @property
    def names(self) -> set[str]:
        """Names of all columns, or of those whose parts are named."""
        single = (self.split, self.licence, self.attribution)
        captions = self.captions or CAPTION_COLUMNS
        named = {*captions, *self.annotation, *filter(None, single)}
        return named | {name.split(".")[0] for name in named}

    def resolve(self, known: Collection[str], *, where: str) -> Columns:
        """The columns with that of the caption named.

        Args:
          known: names of the existing columns.
          where: they are, for errors.

        Raises:
          UserError: one is missing.
        """
        captions = self.captions or tuple(
            name for name in CAPTION_COLUMNS if name in known
        )[:1]  # fmt: skip
        if not captions:
            raise UserError(
                f"source.columns.captions must name a column of {where}, which has "
                f"{_listed(known)}, got none; name the one that holds the captions."
            )
        resolved = dataclasses.replace(self, captions=captions)
        for field in dataclasses.fields(self):
            names = getattr(resolved, field.name)
            if field.name != "caption_kinds" and names is not None:
                for name in (names,) if isinstance(names, str) else names:
                    check_column(
                        name,
                        known,
                        field=f"source.columns.{field.name}",
                        where=where,
                    )
        return resolved

    def entry(self, row: Mapping[str, Any], *, key: str, split: str = "") -> Entry:
        """What a row says; its other columns are there for filters.

        Args:
          row: column -> value.
          key: of the entry.
          split: its name in the source, if no column says it.

        Raises:
          BrokenPicture: a value is not what it must be.
        """
        if self.split is not None:
            split = _text(row, self.split, key)
        return Entry(
            key=key,
            captions=tuple(_text(row, name, key) for name in self.captions),
            split=split_of(split, key=key) if split else "",
            licence=_text(row, self.licence, key) if self.licence else "",
            attribution=_text(row, self.attribution, key) if self.attribution else "",
            columns=row,
            annotation={name: _as_json(find(row, name)) for name in self.annotation},
        )


def columns_of(read: Callable[[int], Mapping[str, Any]], length: int) -> list[str]:
    """Names of the columns of rows that say themselves what they have.

    About a hundred rows are read, from the first to the last.

    Args:
      read: number of a row -> the row.
      length: the number of rows.

    Raises:
      BrokenPicture: none of these rows can be read.
    """
    names: dict[str, None] = {}
    problem: BrokenPicture | None = None
    numbers = range(0, length, max(1, length // _LOOKED_AT))
    for number in numbers:
        try:
            names |= dict.fromkeys(read(number))
        except BrokenPicture as error:
            problem = problem or error
    if problem is not None and not names:
        raise problem
    return list(names)


def check_column(name: str, known: Collection[str], *, field: str, where: str) -> None:
    """Raises UserError, naming those that exist, if there is no such column."""
    if name in known or name.split(".")[0] in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "name one of them."
    raise UserError(
        f"{field} must be a column of {where}, which has {_listed(known)}, got "
        f"{name!r}; {hint}"
    )


def choose_splits(
    found: Mapping[str, Any], wanted: Sequence[str], *, where: str
) -> dict[str, Any]:
    """The splits by name: those wanted, or all.

    Args:
      found: name -> split, of all that exist; the only one may have no name.
      wanted: names; all if empty.
      where: they are, for errors.

    Raises:
      UserError: one that is wanted is not there, or of several one is neither for
        training nor for validation.
    """
    for name in wanted:
        if name not in found:
            raise UserError(
                f"source.splits must name splits of {where}, which has "
                f"{', '.join(filter(None, found)) or 'no names of splits'}, got "
                f"{name!r}; correct it."
            )
    chosen = {name: found[name] for name in wanted or found}
    unknown = [name for name in chosen if name.lower() not in _SPLITS]
    if not chosen or (len(chosen) > 1 and unknown):
        raise UserError(
            f"source.splits must be among {', '.join(_SPLITS)} if there are several, "
            f"got {', '.join(chosen) or 'no split'} in {where}; name those to use."
        )
    return chosen


def split_of(name: str, *, key: str) -> str:
    """The split here that a name of one stands for.

    Raises:
      BrokenPicture: it is no name of a split.
    """
    if name.lower() not in _SPLITS:
        raise BrokenPicture(
            f"picture {key} must be in one of the splits {', '.join(_SPLITS)}, got "
            f"{name!r}; correct it."
        )
    return _SPLITS[name.lower()]


def find(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a part of it; None if there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list | tuple) and part.isdecimal():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            return None
    return value


def _text(row: Mapping[str, Any], name: str, key: str) -> str:
    """The text of a column, without space around it; empty where there is none."""
    value = find(row, name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        value = decode_text(value, what=f"{name} of picture {key}")
    if not isinstance(value, str):
        hint = f"name one of its parts, as {name}.0"
        raise BrokenPicture(
            f"{name} of picture {key} must be text, got {str(value)[:80]!r}; "
            f"{hint if isinstance(value, list | tuple) else 'name another column'}."
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BrokenPicture(
            f"{name} of picture {key} must be valid text, got {value[:80]!a}; correct "
            "its encoding."
        ) from None
    return value.strip()


def decode_text(content: bytes, *, what: str) -> str:
    """The text of a file or value in UTF-8, with or without a byte order mark.

    Args:
      content: its bytes.
      what: it is, for errors.

    Raises:
      BrokenPicture: it is in another encoding.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BrokenPicture(
            f"{what} must be in UTF-8, got {content[:40]!r}; convert it."
        ) from None


def _as_json(value: Any) -> Any:
    """A value that can be stored as JSON in UTF-8: itself, or else its text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        return str(value).encode(errors="backslashreplace").decode()
    return value


def _listed(names: Collection[str]) -> str:
    shown = [repr(name)[1:-1][:40] for name in list(names)[:20]]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(shown) or "none") + more
