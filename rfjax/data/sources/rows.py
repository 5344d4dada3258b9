# SPDX-License-Identifier: Apache-2.0
"""A source made of numbered rows: what folders, tables and archives have in common."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rfjax.data.sources.base import Entry
from rfjax.data.sources.columns import Columns
from rfjax.data.sources.pictures import (
    BrokenPicture,
    Colour,
    Picture,
    decode_picture,
    read_size,
)
from rfjax.errors import MissingFileError, UserError

NOT_STATED = "Licence: not stated by the source."


class Rows(Protocol):
    """Numbered rows, each with a picture file.

    Attributes:
      where: they are, for errors.
      columns: names of what a row may have.
      notes: what their user has to know, one sentence each.
    """

    where: str
    columns: Collection[str]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        """The number of rows."""

    def key(self, index: int) -> str:
        """The name of a row, unique; it does not depend on where the files are."""

    def split(self, index: int) -> str:
        """The name of a row's split; empty if none is known."""

    def row(self, index: int) -> Mapping[str, Any]:
        """Column -> value, without pictures.

        Raises:
          BrokenPicture: the row cannot be read.
        """

    def picture(self, index: int) -> Picture:
        """The content or the path of the picture file.

        Raises:
          BrokenPicture: there is none.
        """


class RowSource:
    """Pictures and captions from rows.

    A row that cannot be read is an entry that says what is wrong, and its picture a
    `BrokenPicture` that says the same.

    Attributes:
      licence: see `Source`.
      caption_kinds: see `Source`.
    """

    def __init__(
        self, rows: Rows, columns: Columns, *, background: Colour, licence: str
    ):
        if not len(rows):
            raise UserError(
                f"{rows.where} must hold at least one picture, got none"
                f"{''.join(f'; {note}' for note in rows.notes)}; name another place."
            )
        self._rows = rows
        self._columns = columns.resolve(rows.columns, where=rows.where)
        self._background = background
        self.licence = licence
        self.caption_kinds = columns.caption_kinds

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Rows`; finding them may take as long as looking at all rows."""
        return self._rows.notes

    def __len__(self) -> int:
        return len(self._rows)

    def entry(self, index: int) -> Entry:
        """What a row says; see `Source`."""
        try:
            return self._read(index)
        except BrokenPicture as error:
            captions = ("",) * len(self.caption_kinds)
            return Entry(self._rows.key(index), captions, broken=str(error))

    def picture(self, index: int) -> np.ndarray:
        """The picture of a row; see `Source`."""
        key = self._read(index).key
        file = self._rows.picture(index)
        return decode_picture(file, name=key, background=self._background)

    def size(self, index: int) -> tuple[int, int]:
        """Its (height, width) by the header of its file; see `Source`."""
        key = self._read(index).key
        return read_size(self._rows.picture(index), name=key)

    def _read(self, index: int) -> Entry:
        rows = self._rows
        if not 0 <= index < len(rows):
            raise IndexError(index)
        try:
            row, split = rows.row(index), rows.split(index)
        except FileNotFoundError as error:
            raise MissingFileError(
                f"{rows.where} must stay while it is read, got no {error.filename}; "
                "restore it, and run the same command again."
            ) from error
        return self._columns.entry(row, key=rows.key(index), split=split)


def picture_in(value: Any, *, folder: Path, key: str) -> Picture:
    """The picture that a cell of a table holds or names.

    Args:
      value: bytes; a path, which is followed wherever it leads; or both by the names
        "bytes" and "path", as Hugging Face stores pictures.
      folder: where relative paths start.
      key: of the row.

    Raises:
      BrokenPicture: it is none of them.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise BrokenPicture(
            f"picture {key} must be a path or the bytes of a file, got "
            f"{str(value)[:80]!r}; correct it."
        )
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", value):
        raise BrokenPicture(
            f"picture {key} must be a path on this machine, got {value[:200]!r}; "
            "download the pictures first, for example with img2dataset."
        )
    return folder / value
