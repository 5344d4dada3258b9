# SPDX-License-Identifier: Apache-2.0
"""Tables of pictures and captions: JSON lines, CSV, TSV and parquet.

A column holds the paths of the pictures, or their bytes; others hold captions and what
else is known of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rfjax.data.numbering import Numbering
from rfjax.data.sources.base import ImageSize
from rfjax.data.sources.columns import Columns, check_column, find
from rfjax.data.sources.file_patterns import find_files, relative_names
from rfjax.data.sources.parquet_table import ParquetTable
from rfjax.data.sources.pictures import WHITE, Colour, Picture
from rfjax.data.sources.rows import NOT_STATED, RowSource, picture_in
from rfjax.data.sources.text_tables import DelimitedText, JsonLines
from rfjax.errors import UserError
from rfjax.value_types import InputPath, Text, check_fields

# Where pictures are looked for if no column is named: in the first of these.
PICTURE_COLUMNS = ("image", "file_name", "image_path", "path", "jpg", "png")

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """Which tables, and what their columns are.

    Attributes:
      paths: the files, as data/part-*.parquet or data/{00..31}.jsonl; in JSON lines,
        CSV, TSV or parquet, by their endings.
      picture: column of the pictures: paths, bytes, or both as Hugging Face stores
        them; by default the first of image, file_name, image_path, path, jpg and png
        that exists.
      folder: where relative paths of pictures start; by default that of each table.
      columns: which columns are the captions, the licence and so on.
      image_size: S; pictures are brought to about S x S pixels.
      background: red, green and blue behind what is transparent.
      licence: notice that goes wherever the pictures or their latents go.
    """

    paths: tuple[InputPath, ...]
    picture: Text | None = None
    folder: InputPath | None = None
    columns: Columns = Columns()
    image_size: ImageSize = 256
    background: Colour = WHITE
    licence: Text = NOT_STATED

    def __post_init__(self):
        check_fields(self, section="source")

    def make(self) -> RowSource:
        """Opens the tables; those of text are read through once.

        Raises:
          UserError: a file is no table, or a column is missing.
          MissingFileError: there is no such file.
        """
        rows = TableRows(
            find_files(self.paths, field="source.paths"),
            picture=self.picture,
            folder=self.folder,
            named=self.columns.names,
        )
        return RowSource(
            rows, self.columns, background=self.background, licence=self.licence
        )


class TableRows:
    """The rows of several tables, one after the other."""

    notes = ()

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        picture: str | None = None,
        folder: str | Path | None = None,
        named: Collection[str] = (),
    ):
        """Opens the tables.

        Args:
          paths: of the files.
          picture: see `TableConfig`.
          folder: see `TableConfig`.
          named: columns that are read even if they hold bytes.

        Raises:
          UserError: a file is no table, or has no such column.
        """
        self._tables = [_open(path, named) for path in paths]
        self._names = relative_names(paths)
        self._folders = [Path(folder or path.parent) for path in paths]
        self._numbering = Numbering(map(len, self._tables))
        self.where = ", ".join(map(str, paths[:3])) + ", ..." * (len(paths) > 3)
        filled = [table for table in self._tables if len(table)] or self._tables
        # What every table has.
        self.columns: Collection[str] = [
            name
            for name in filled[0].columns
            if all(name in table.columns for table in filled)
        ]
        self._picture = picture or next(
            (name for name in PICTURE_COLUMNS if name in self.columns), ""
        )
        for table, path in zip(self._tables, paths, strict=True):
            if len(table):
                check_column(
                    self._picture,
                    table.columns,
                    field="source.picture",
                    where=str(path),
                )

    def __len__(self) -> int:
        return len(self._numbering)

    def key(self, index: int) -> str:
        """FILE:ROW, counted from 0."""
        table, row = self._numbering.place(index)
        return f"{self._names[table]}:{row}"

    def split(self, index: int) -> str:
        """None is known but by a column."""
        return ""

    def row(self, index: int) -> Mapping[str, Any]:
        """Column -> value; see `Rows`."""
        table, row = self._numbering.place(index)
        return self._tables[table].row(row, key=self.key(index))

    def picture(self, index: int) -> Picture:
        """What the column of pictures holds or names; see `Rows`."""
        table, row = self._numbering.place(index)
        key = self.key(index)
        if isinstance(self._tables[table], ParquetTable):
            value = self._tables[table].cell(row, self._picture, key=key)
        else:
            value = find(self.row(index), self._picture)
        return picture_in(value, folder=self._folders[table], key=key)


def _open(
    path: Path, named: Collection[str]
) -> JsonLines | DelimitedText | ParquetTable:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return ParquetTable(path, named=named)
    if suffix in (".csv", ".tsv"):
        return DelimitedText(path, delimiter="," if suffix == ".csv" else "\t")
    if suffix in (".jsonl", ".ndjson"):
        return JsonLines(path)
    raise UserError(
        f"source.paths must name files that end in {', '.join(SUFFIXES)}, got {path}; "
        "convert it, unpack it, or leave it out."
    )
