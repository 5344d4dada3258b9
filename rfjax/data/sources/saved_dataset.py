# SPDX-License-Identifier: Apache-2.0
"""Data sets of the Hugging Face library `datasets`, saved on this disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rfjax.data.numbering import Numbering
from rfjax.data.sources.base import ImageSize
from rfjax.data.sources.columns import Columns, check_column, choose_splits, find
from rfjax.data.sources.parquet_table import has_bytes
from rfjax.data.sources.pictures import WHITE, Colour, Picture
from rfjax.data.sources.rows import NOT_STATED, RowSource, picture_in
from rfjax.data.sources.table import PICTURE_COLUMNS
from rfjax.errors import MissingFileError, UserError, refusal_of_disk
from rfjax.packages import import_package
from rfjax.value_types import InputPath, Text, check_fields


@dataclasses.dataclass(frozen=True)
class SavedDatasetConfig:
    """Which data set, and what its columns are.

    Attributes:
      path: folder that `save_to_disk` wrote, of one split or of several; or an Arrow
        file, such as the library keeps in its cache.
      splits: names of the splits that are used; all by default. A data set of one split
        is divided by the hash of the captions.
      picture: column of the pictures; by default the one with the feature Image.
      columns: which columns are the captions, the licence and so on; a ClassLabel is
        read as the name of its class.
      image_size: S; pictures are brought to about S x S pixels.
      background: red, green and blue behind what is transparent.
      licence: notice that goes wherever the pictures or their latents go; by default
        what the data set says of itself.
    """

    path: InputPath
    splits: tuple[Text, ...] = ()
    picture: Text | None = None
    columns: Columns = Columns()
    image_size: ImageSize = 256
    background: Colour = WHITE
    licence: Text | None = None

    def __post_init__(self):
        check_fields(self, section="source")

    def make(self) -> RowSource:
        """Maps the files into memory.

        Raises:
          UserError: they are no such data set, or a split or column is missing.
          MissingFileError: there is no such folder.
          MissingPackageError: the package datasets is not installed.
        """
        rows = _DatasetRows(self)
        licence = self.licence or rows.licence
        return RowSource(
            rows, self.columns, background=self.background, licence=licence
        )


class _DatasetRows:
    """The rows of all splits, one after the other."""

    notes = ()

    def __init__(self, config: SavedDatasetConfig):
        path = Path(config.path)
        self.where, self._folder = config.path, path if path.is_dir() else path.parent
        splits = choose_splits(_load(path), config.splits, where=self.where)
        self._names = list(splits)
        first = next(iter(splits.values()))
        self.licence = first.info.license or NOT_STATED
        self.columns: Collection[str] = [
            name
            for name in first.column_names
            if all(name in split.column_names for split in splits.values())
        ]
        self._picture = config.picture or _picture_column(first)
        check_column(
            self._picture, self.columns, field="source.picture", where=self.where
        )
        self._top = self._picture.split(".")[0]
        # As they are stored: the library itself would decode the pictures.
        stored = [split.with_format("arrow") for split in splits.values()]
        self._pictures = [split.select_columns([self._top]) for split in stored]
        self._others = [
            split.select_columns(_columns_of_rows(split, self._top, config.columns))
            for split in stored
        ]
        self._numbering = Numbering(map(len, stored))

    def __len__(self) -> int:
        return len(self._numbering)

    def key(self, index: int) -> str:
        """SPLIT:ROW, counted from 0."""
        split, row = self._numbering.place(index)
        return f"{self._names[split] or 'row'}:{row}"

    def split(self, index: int) -> str:
        """The split of a row, if there are several."""
        split, _ = self._numbering.place(index)
        return self._names[split] if len(self._names) > 1 else ""

    def row(self, index: int) -> Mapping[str, Any]:
        """Column -> value; see `Rows`."""
        split, row = self._numbering.place(index)
        (values,) = self._others[split][row].to_pylist()
        for name, feature in self._others[split].features.items():
            names = getattr(feature, "names", None)
            if names and isinstance(values[name], int):
                values[name] = (
                    feature.int2str(values[name]) if values[name] >= 0 else None
                )
        return values

    def picture(self, index: int) -> Picture:
        """What the column of pictures holds or names; see `Rows`."""
        split, row = self._numbering.place(index)
        (values,) = self._pictures[split][row].to_pylist()
        return picture_in(
            find(values, self._picture), folder=self._folder, key=self.key(index)
        )


def _load(path: Path) -> dict[str, Any]:
    """Split -> data set of the library; the only one may have no name."""
    datasets = import_package("datasets", use="data sets of Hugging Face")
    pyarrow = import_package("pyarrow", use="data sets of Hugging Face")
    if not path.exists():
        raise MissingFileError(
            f"source.path must be a folder or an Arrow file, got {path}; correct it."
        )
    try:
        if path.is_file():
            loaded = datasets.Dataset.from_file(str(path))
        else:
            loaded = datasets.load_from_disk(str(path), keep_in_memory=False)
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        if refusal_of_disk(error) is not None:
            raise
        raise UserError(
            f"source.path must be what save_to_disk of datasets wrote, got {path}: "
            f"{' '.join(str(error).split())[:200]}; write it again, or name another."
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        return dict(loaded)
    return {"": loaded}


def _picture_column(split: Any) -> str:
    """The column with the feature Image; else the first of `PICTURE_COLUMNS`."""
    import datasets

    for name, feature in split.features.items():
        if isinstance(feature, datasets.Image):
            return name
    return next((name for name in PICTURE_COLUMNS if name in split.column_names), "")


def _columns_of_rows(split: Any, picture: str, columns: Columns) -> list[str]:
    """The columns that belong to a row: no pictures, and no bytes but what is named."""
    return [
        field.name
        for field in split.features.arrow_schema
        if field.name != picture
        and (field.name in columns.names or not has_bytes(field.type))
    ]
