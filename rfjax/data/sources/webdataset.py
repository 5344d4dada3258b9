# SPDX-License-Identifier: Apache-2.0
"""WebDataset tars: files of the same name up to the first dot are a sample.

0001.jpg, 0001.txt and 0001.json are a picture, its caption and what else is known of
it. The tars are read at random, and stay as they are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rfjax.data.numbering import Numbering
from rfjax.data.sources.base import ImageSize
from rfjax.data.sources.columns import Columns, columns_of
from rfjax.data.sources.file_patterns import find_files, relative_names
from rfjax.data.sources.pictures import (
    PICTURE_SUFFIXES,
    WHITE,
    BrokenPicture,
    Colour,
    Picture,
)
from rfjax.data.sources.rows import NOT_STATED, RowSource
from rfjax.data.sources.sidecars import TEXT_SUFFIXES, row_of
from rfjax.data.sources.tar_index import read_index
from rfjax.errors import UserError
from rfjax.value_types import InputPath, Text, check_fields

_OPEN_INDICES = 256


@dataclasses.dataclass(frozen=True)
class WebDatasetConfig:
    """Which tars, and which of their files are what.

    Attributes:
      paths: the tars, as data/{00000..00127}.tar or data/*.tar; not compressed.
      picture: ending of the pictures, as jpg; by default the one file of each sample
        that has the ending of a picture.
      columns: which columns are the captions, the licence and so on. Files that end in
        txt or caption are columns of that name, and so are the fields of json files.
      image_size: S; pictures are brought to about S x S pixels.
      background: red, green and blue behind what is transparent.
      licence: notice that goes wherever the pictures or their latents go.
    """

    paths: tuple[InputPath, ...]
    picture: Text | None = None
    columns: Columns = Columns()
    image_size: ImageSize = 256
    background: Colour = WHITE
    licence: Text = NOT_STATED

    def __post_init__(self):
        check_fields(self, section="source")

    def make(self) -> RowSource:
        """Reads the headers of all tars, or what was kept of them in the cache.

        Raises:
          UserError: a file is no whole tar, or no sample has the columns.
          MissingFileError: there is no such file.
        """
        paths = find_files(self.paths, field="source.paths")
        rows = _Samples(paths, self.picture)
        return RowSource(
            rows, self.columns, background=self.background, licence=self.licence
        )


class _Samples:
    """The samples of all tars, one after the other."""

    notes = ()

    def __init__(self, paths: Sequence[Path], picture: str | None):
        self._paths = paths
        self._names = relative_names(paths)
        self._picture = picture
        # Each is a file that stays open, and of those a process may have 1,024.
        self._index = functools.lru_cache(_OPEN_INDICES)(read_index)
        sizes = (self._index(path).num_rows for path in paths)
        self._numbering = Numbering(sizes)
        self.where = ", ".join(map(str, paths[:3])) + ", ..." * (len(paths) > 3)
        self.columns: Collection[str] = columns_of(self.row, len(self))

    def __len__(self) -> int:
        return len(self._numbering)

    def key(self, index: int) -> str:
        """TAR/NAME."""
        tar, row = self._numbering.place(index)
        name = self._index(self._paths[tar])["name"][row].as_py()
        return f"{self._names[tar]}/{name.decode(errors='backslashreplace')}"

    def split(self, index: int) -> str:
        """None is known but by a column."""
        return ""

    def row(self, index: int) -> Mapping[str, Any]:
        """What the texts of a sample say; see `Rows`."""
        files = self._files(index)
        texts = [s for s in files if s.rpartition(".")[2] in TEXT_SUFFIXES]
        parts = dict(
            zip(texts, self._read(index, [files[s] for s in texts]), strict=True)
        )
        return row_of(parts, key=self.key(index))

    def picture(self, index: int) -> Picture:
        """The content of a sample's picture; see `Rows`."""
        files = self._files(index)
        found = [s for s in files if f".{s.rpartition('.')[2]}" in PICTURE_SUFFIXES]
        if self._picture is not None:
            found = [s for s in files if s == self._picture.lower().removeprefix(".")]
        elif len(found) > 1:  # beside x.jpg there may be x.mask.png
            found = [suffix for suffix in found if "." not in suffix]
        if len(found) != 1:
            raise BrokenPicture(
                f"picture {self.key(index)} must be one file of its sample, got "
                f"{', '.join(files)}; name its ending in source.picture, or remove the "
                "sample."
            )
        (content,) = self._read(index, [files[found[0]]])
        return content

    def _files(self, index: int) -> dict[str, tuple[int, int]]:
        """Ending of each file of a sample -> its place in the tar, and its size."""
        tar, row = self._numbering.place(index)
        names, offsets, sizes = (
            self._index(self._paths[tar])[name][row].as_py()
            for name in ("suffixes", "offsets", "sizes")
        )
        if len(set(names)) < len(names):
            raise BrokenPicture(
                f"picture {self.key(index)} must have one file of each ending, got "
                f"{', '.join(names)}; remove one of two alike."
            )
        return dict(zip(names, zip(offsets, sizes, strict=True), strict=True))

    def _read(self, index: int, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """The contents of files of a sample."""
        tar, _ = self._numbering.place(index)
        contents = []
        with self._paths[tar].open("rb") as archive:
            for offset, size in places:
                archive.seek(offset)
                contents.append(archive.read(size))
                if len(contents[-1]) < size:
                    raise UserError(
                        f"{self._paths[tar]} must stay as it was, got a shorter file; "
                        "restore it, and run the same command again."
                    )
        return contents
