# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures, with captions in files beside them or in a table.

a.jpg has its caption in a.txt or a.caption, and what else is known of it in a.json. Or
metadata.jsonl, .csv or .parquet in a folder lists its pictures in the column file_name,
as Hugging Face's imagefolder has it.
"""

from __future__ import annotations

import array
import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rfjax.data.sources.base import ImageSize
from rfjax.data.sources.columns import Columns, columns_of
from rfjax.data.sources.pictures import (
    PICTURE_SUFFIXES,
    WHITE,
    BrokenPicture,
    Colour,
    Picture,
)
from rfjax.data.sources.rows import NOT_STATED, RowSource
from rfjax.data.sources.sidecars import TEXT_SUFFIXES, Tally, row_of
from rfjax.data.sources.table import TableRows
from rfjax.errors import MissingFileError, UserError, refusal_of_disk
from rfjax.packages import import_package
from rfjax.value_types import InputPath, Text, check_fields

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


@dataclasses.dataclass(frozen=True)
class ImageFolderConfig:
    """Which folder, and what is beside its pictures.

    Attributes:
      path: the folder; folders in it, and links, are followed, hidden ones are not.
      splits_by_folder: whether the folders in it are named for splits: train, and
        validation, val, valid, dev, eval or test.
      columns: which columns are the captions, the licence and so on. Files that end in
        txt or caption are columns of that name; so are the fields of json files, the
        columns of the table, and folder and stem of the picture's own path.
      image_size: S; pictures are brought to about S x S pixels.
      background: red, green and blue behind what is transparent.
      licence: notice that goes wherever the pictures or their latents go.
    """

    path: InputPath
    splits_by_folder: bool = False
    columns: Columns = Columns()
    image_size: ImageSize = 256
    background: Colour = WHITE
    licence: Text = NOT_STATED

    def __post_init__(self):
        check_fields(self, section="source")

    def make(self) -> RowSource:
        """Lists the folder.

        Raises:
          UserError: it holds no pictures, or none has such a caption.
          MissingFileError: there is no such folder.
        """
        if not Path(self.path).is_dir():
            raise MissingFileError(
                f"source.path must be a folder, got {self.path}; correct it."
            )
        files = _Files(Path(self.path))
        rows = (_Listed if files.tables else _Beside)(files, self.splits_by_folder)
        return RowSource(
            rows, self.columns, background=self.background, licence=self.licence
        )


class _Files:
    """What is in a folder, sorted by name within each folder of it.

    Attributes:
      folder: it.
      pictures: Arrow array of paths in it, as bytes.
      suffixes: endings of the texts beside pictures, as they are spelled.
      beside: for each picture, bits that say which of `suffixes` are beside it.
      tables: files with the names of `_METADATA`.
      without_picture: texts that are beside no picture.
      others: files of other kinds.
    """

    def __init__(self, folder: Path):
        pyarrow = import_package("pyarrow", use="image folders")
        self.folder = folder
        self.suffixes: list[bytes] = []
        self.beside = array.array("Q")
        self.tables: list[Path] = []
        self.without_picture = Tally("texts beside no picture")
        self.others = Tally("files that are neither pictures nor texts")
        chunks = [self._add(place, names) for place, names in _walk(folder)]
        self.pictures = pyarrow.chunked_array(chunks, pyarrow.binary())

    def _add(self, place: bytes, names: list[bytes]) -> list[bytes]:
        """Sorts the files of one folder; returns its pictures."""
        pictures, texts = [], {}
        for name in names:
            stem, suffix = os.path.splitext(name)
            kind = os.fsdecode(suffix).lower()
            if os.fsdecode(name) in _METADATA:
                self.tables.append(self.folder / os.fsdecode(os.path.join(place, name)))
            elif kind in PICTURE_SUFFIXES:
                pictures.append((stem, os.path.join(place, name)))
            elif kind[1:] in TEXT_SUFFIXES:
                texts[stem] = texts.get(stem, 0) | 1 << self._number(suffix)
            else:
                self.others.add(_shown(os.path.join(place, name)))
        self.beside.extend(texts.get(stem, 0) for stem, _ in pictures)
        for stem in sorted(texts.keys() - {stem for stem, _ in pictures}):
            for suffix in self.spelled(texts[stem]):
                self.without_picture.add(_shown(os.path.join(place, stem + suffix)))
        return [path for _, path in pictures]

    def _number(self, suffix: bytes) -> int:
        if suffix not in self.suffixes:
            self.suffixes.append(suffix)
        return self.suffixes.index(suffix)

    def spelled(self, bits: int) -> list[bytes]:
        """The endings that are marked."""
        return [s for number, s in enumerate(self.suffixes) if bits >> number & 1]


class _Beside:
    """Pictures with texts beside them."""

    def __init__(self, files: _Files, splits_by_folder: bool):
        self._files, self._splits_by_folder = files, splits_by_folder
        self.where = str(files.folder)
        self.columns: Collection[str] = columns_of(self.row, len(self))

    @property
    def notes(self) -> tuple[str, ...]:
        """Files that are not used, and pictures that have nothing beside them."""
        alone = Tally("pictures with no text beside them")
        for index in np.flatnonzero(np.asarray(self._files.beside) == 0):
            alone.add(self.key(int(index)))
        tallies = (alone, self._files.without_picture, self._files.others)
        return tuple(filter(None, map(str, tallies)))

    def __len__(self) -> int:
        return len(self._files.pictures)

    def key(self, index: int) -> str:
        """The path of a picture in the folder."""
        return _shown(self._path(index))

    def split(self, index: int) -> str:
        """The first folder of a picture's path, if that names its split."""
        return _first_folder(self.key(index)) if self._splits_by_folder else ""

    def row(self, index: int) -> Mapping[str, Any]:
        """What the texts beside a picture say; see `Rows`."""
        path = self._path(index)
        stem = os.path.splitext(path)[0]
        parts: dict[str, bytes] = {}
        for suffix in self._files.spelled(self._files.beside[index]):
            name = os.fsdecode(suffix[1:]).lower()
            if name in parts:
                raise BrokenPicture(
                    f"picture {self.key(index)} must have one file {name} beside it, "
                    "got two, in upper and lower case; remove one."
                )
            try:
                parts[name] = (
                    self._files.folder / os.fsdecode(stem + suffix)
                ).read_bytes()
            except OSError as error:
                if refusal_of_disk(error) is not None:
                    raise  # the disk is broken, not the file
                raise BrokenPicture(
                    f"file {name} of picture {self.key(index)} must be readable, got: "
                    f"{error.strerror}; correct it."
                ) from None
        place, _, name = _shown(stem).rpartition("/")
        return {"folder": place, "stem": name} | row_of(parts, key=self.key(index))

    def picture(self, index: int) -> Picture:
        """The path of a picture; see `Rows`."""
        return self._files.folder / os.fsdecode(self._path(index))

    def _path(self, index: int) -> bytes:
        return self._files.pictures[index].as_py()


class _Listed(TableRows):
    """Pictures that tables in the folder list."""

    def __init__(self, files: _Files, splits_by_folder: bool):
        try:
            super().__init__(files.tables, picture="file_name")
        except UserError as error:
            raise UserError(
                f"{error} A file {', '.join(_METADATA)} in source.path must list its "
                "pictures in the column file_name; rename one that does not."
            ) from error
        self.where = str(files.folder)
        self._files, self._splits_by_folder = files, splits_by_folder

    @property
    def notes(self) -> tuple[str, ...]:
        """Pictures that no table lists; all rows are read to find them."""
        listed = {self._path(index) for index in range(len(self))}
        unlisted = Tally(f"pictures in no {_METADATA[0]} or the like")
        for picture in self._files.pictures:
            if _shown(picture.as_py()) not in listed:
                unlisted.add(_shown(picture.as_py()))
        return tuple(filter(None, map(str, (unlisted, self._files.others))))

    def split(self, index: int) -> str:
        """The first folder of a picture's path, if that names its split."""
        return _first_folder(self._path(index)) if self._splits_by_folder else ""

    def _path(self, index: int) -> str:
        """The path of a picture in the folder; empty if the row names none."""
        try:
            picture = self.picture(index)
        except BrokenPicture:
            return ""
        return os.path.relpath(picture, self._files.folder)


def _walk(folder: Path) -> Iterator[tuple[bytes, list[bytes]]]:
    """Each folder in a folder and the names of its files, sorted; hidden ones left out.

    A folder that links lead to twice, or in a circle, comes once.
    """

    def refuse(error: OSError) -> None:
        raise error

    root, seen = os.fsencode(folder), set()
    for place, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(n for n in folders if n[:1] != b"." and n != b"__MACOSX")
        names = sorted(name for name in files if name[:1] != b".")
        yield (b"" if place == root else os.path.relpath(place, root)), names


def _first_folder(path: str) -> str:
    return path.split("/")[0] if "/" in path else ""


def _shown(path: bytes) -> str:
    """A path as text, whatever its encoding."""
    return path.decode(errors="backslashreplace")
