# SPDX-License-Identifier: Apache-2.0
"""Rows of JSON lines, CSV and TSV at random, by an index of where each begins.

Only the index is in memory, 16 bytes a row. A row that cannot be read is found when it
is asked for, and breaks no other.
"""

from __future__ import annotations

import array
import csv
import io
import itertools
import json
import mmap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rfjax.data.sources.columns import columns_of, decode_text
from rfjax.data.sources.pictures import BrokenPicture
from rfjax.errors import UserError

_BOM = b"\xef\xbb\xbf"
_BLOCK = 2**26  # bytes that are searched for ends of lines at a time


class JsonLines:
    """A file with a JSON object on each line; blank lines are passed over.

    Attributes:
      columns: keys of the objects.
    """

    def __init__(self, path: Path):
        self._path = path
        self._spans = _lines(path)
        self.columns: Collection[str] = columns_of(
            lambda index: self.row(index, key=f"{path}:{index}"), len(self)
        )

    def __len__(self) -> int:
        return len(self._spans)

    def row(self, index: int, *, key: str) -> Mapping[str, Any]:
        """The object of a line.

        Args:
          index: of the row.
          key: of the row, for errors.

        Raises:
          BrokenPicture: it is no JSON object in UTF-8.
        """
        text = _read(self._path, self._spans[index], key)
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BrokenPicture(
                f"row {key} must be a JSON object on one line, got {text[:80]!r} "
                f"({error}); correct it."
            ) from None
        if not isinstance(row, dict):
            raise BrokenPicture(
                f"row {key} must be a JSON object on one line, got {text[:80]!r}; "
                "correct it."
            )
        return row


class DelimitedText:
    """A CSV or TSV file with a header; fields in quotes may hold line breaks.

    Every value is text.

    Attributes:
      columns: the header.
    """

    def __init__(self, path: Path, *, delimiter: str):
        self._path, self._delimiter = path, delimiter
        spans = _records(path, delimiter)
        if not len(spans):
            raise UserError(
                f"{path} must begin with a row of column names, got an empty file; "
                "write one."
            )
        try:
            self.columns: Collection[str] = self._fields(spans[0], key=f"{path}")
        except BrokenPicture as error:
            raise UserError(str(error)) from None
        if len(set(self.columns)) < len(self.columns):
            raise UserError(
                f"{path} must have column names that differ, got "
                f"{', '.join(self.columns)}; rename one."
            )
        self._spans = spans[1:]

    def __len__(self) -> int:
        return len(self._spans)

    def row(self, index: int, *, key: str) -> Mapping[str, Any]:
        """Column -> text.

        Args:
          index: of the row.
          key: of the row, for errors.

        Raises:
          BrokenPicture: it has more or fewer fields than the header, or is not UTF-8.
        """
        fields = self._fields(self._spans[index], key=key)
        if len(fields) != len(self.columns):
            raise BrokenPicture(
                f"row {key} must have {len(self.columns)} fields, as the header has, "
                f"got {len(fields)}; correct it."
            )
        return dict(zip(self.columns, fields, strict=True))

    def _fields(self, span: np.ndarray, *, key: str) -> list[str]:
        text = _read(self._path, span, key)
        return next(csv.reader(io.StringIO(text, ""), delimiter=self._delimiter))


def _read(path: Path, span: np.ndarray, key: str) -> str:
    """The text between two places of a file."""
    start, stop = map(int, span)
    with path.open("rb") as file:
        file.seek(start)
        return decode_text(file.read(stop - start), what=f"row {key}")


def _lines(path: Path) -> np.ndarray:
    """Where each line that is not blank begins and ends: [N, 2] int64."""
    size = path.stat().st_size
    if not size:
        return np.empty((0, 2), np.int64)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        ends = [
            start
            + np.flatnonzero(
                np.frombuffer(text[start : start + _BLOCK], np.uint8) == ord("\n")
            )
            for start in range(0, size, _BLOCK)
        ]
        stops = np.append(np.concatenate(ends), size).astype(np.int64)
        starts = np.append(0, stops[:-1] + 1)
        # Short lines may be blank: a carriage return, a mark, spaces.
        is_blank = starts >= stops
        for line in np.flatnonzero(stops - starts < 8):
            content = text[starts[line] : stops[line]]
            is_blank[line] = not content.removeprefix(_BOM).strip()
    return np.stack([starts, stops], axis=1)[~is_blank]


def _records(path: Path, delimiter: str) -> np.ndarray:
    """Where each record of a CSV file begins and ends, the header's first: [N, 2]."""
    place = 0

    def lines(file: io.BufferedReader) -> Iterator[str]:
        """The lines, a character for each byte: all that matters here is ASCII."""
        nonlocal place
        for line in file:
            if place == 0:
                _check_is_utf8(line, path)
                place += len(_BOM) * line.startswith(_BOM)
                line = line.removeprefix(_BOM)
            place += len(line)
            yield line.decode("latin-1")

    spans = array.array("q")
    with path.open("rb") as file:
        reader = csv.reader(lines(file), delimiter=delimiter)
        start = 0
        for number in itertools.count():
            try:
                record = next(reader, None)
            except csv.Error as error:
                raise UserError(
                    f"{path} must be text with quotes around fields that hold quotes "
                    f"or line breaks, got: {error}, in row {number - 1}; correct it."
                ) from None
            if record is None:
                return np.array(spans, np.int64).reshape(-1, 2)
            if record:
                spans.extend((start, place))
            start = place


def _check_is_utf8(line: bytes, path: Path) -> None:
    """Raises UserError for what spreadsheets write as Unicode."""
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} must be in UTF-8, got UTF-16; save it as UTF-8.")
