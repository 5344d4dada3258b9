# SPDX-License-Identifier: Apache-2.0
"""Rows of a folder of Arrow IPC stream files, as Hugging Face's `save_to_disk` writes.

Files are mapped into memory, never read whole. What a stopped download leaves is found
when the folder is opened: a stream without its end, and missing ones of the numbered
files data-00000-of-00042.arrow. Lists of MD5 sums that lie in the folder (NAME.md5 or
NAME.uri, a sum and a path a line, as `md5sum` prints them) are compared with a file
when the first of its rows is read.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rfjax.data.numbering import Numbering
from rfjax.errors import MissingFileError, UserError
from rfjax.packages import import_package

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_NUMBERED = re.compile(r"(.*?)(\d+)-of-(\d+)\.arrow")
_SUM = re.compile(r"([0-9a-fA-F]{32})\s+\*?(.+)")
_NUM_OPEN_FILES = 8  # mapped at a time

_REMEDY = "download it again."


class ArrowStreams:
    """All rows, in the order of the files' paths.

    Args:
      folder: with `.arrow` files in it or in folders below it.
      columns: name -> pattern of its Arrow type, for columns that every file must have.
      field: what the user calls the folder.

    Attributes:
      columns: names of those that every file has.

    Raises:
      MissingFileError: there is no such folder, no file in it, or one is missing.
      MissingPackageError: pyarrow is not installed.
      UserError: a file is cut short or no Arrow stream, or lacks a column.
    """

    def __init__(self, folder: Path, *, columns: Mapping[str, str], field: str):
        self._arrow = import_package("pyarrow", use="Arrow files")
        if not folder.is_dir():
            raise MissingFileError(
                f"{field} must be a folder, got {folder}; name that of the download."
            )
        self._folder = folder
        self._paths = sorted(folder.rglob("*.arrow"))
        self._sums = _read_sums(folder)
        _check_complete(folder, self._paths, self._sums, field=field)
        self._open = functools.lru_cache(_NUM_OPEN_FILES)(self._map)
        counts, names = [], []
        for path in self._paths:
            table = self._open(path)
            _check_columns(path, table, columns)
            counts.append(table.num_rows)
            names.append(frozenset(table.column_names))
        self._numbering = Numbering(counts)
        self.columns = frozenset.intersection(*names)
        self._check_sum = functools.cache(self._problem_of_file)

    def __len__(self) -> int:
        return len(self._numbering)

    def name_of(self, index: int) -> str:
        """A row in words: PATH in the folder, and its number in that file."""
        path, row = self._place(index)
        return f"{path.relative_to(self._folder).as_posix()}:{row}"

    def value(self, index: int, column: str) -> Any:
        """One value as Python has it: bytes, text, a number, or None."""
        path, row = self._place(index)
        return self._open(path).column(column)[row].as_py()

    def check(self, index: int) -> None:
        """Compares the file of a row with its MD5 sum, once for each file.

        Raises:
          UserError: they differ.
        """
        problem = self._check_sum(self._place(index)[0])
        if problem:
            raise UserError(problem)

    def _place(self, index: int) -> tuple[Path, int]:
        """The file of a row, and the row's number in it."""
        file, row = self._numbering.place(index)
        return self._paths[file], row

    def _map(self, path: Path) -> Any:
        """The table of a file, mapped into memory."""
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - len(_END_OF_STREAM)))
            is_whole = file.read() == _END_OF_STREAM
        try:
            stream = self._arrow.memory_map(str(path))
            table = self._arrow.ipc.open_stream(stream).read_all()
        except (self._arrow.ArrowInvalid, OSError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"{path} must be a whole Arrow IPC stream, got {size:,} bytes "
                f"({reason}); {_REMEDY}"
            ) from error
        if not is_whole:
            raise UserError(
                f"{path} must end as an Arrow IPC stream does, got {size:,} bytes "
                f"without an end after row {table.num_rows}; {_REMEDY}"
            )
        return table

    def _problem_of_file(self, path: Path) -> str:
        """What is wrong with the contents of a file; empty: nothing is known."""
        expected = self._sums.get(path)
        if expected is None:
            return ""
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found == expected:
            return ""
        return f"{path} must have the MD5 sum {expected}, got {found}; {_REMEDY}"


def _read_sums(folder: Path) -> dict[Path, str]:
    """Path -> MD5 sum, from all lists in the folder."""
    sums = {}
    lists = itertools.chain(folder.glob("*.md5"), folder.glob("*.uri"))
    for path in sorted(lists):
        for line in path.read_text("utf-8", errors="replace").splitlines():
            if match := _SUM.fullmatch(line.strip()):
                sums[folder / match[2].removeprefix("./")] = match[1].lower()
            elif line.strip() and not re.match(r"#|\w+://", line.strip()):
                raise UserError(
                    f"{path} must hold an MD5 sum and a path a line, got {line[:60]!r}"
                    f"; {_REMEDY}"
                )
    return sums


def _check_complete(
    folder: Path, paths: Iterable[Path], sums: Iterable[Path], *, field: str
) -> None:
    """Raises MissingFileError if a file is not there that should be."""
    there = set(paths)
    if not there:
        raise MissingFileError(
            f"{field} must hold .arrow files, got {folder} with none; name the folder "
            "of the download."
        )
    expected = {path for path in sums if path.suffix == ".arrow"}
    for path in there:
        if match := _NUMBERED.fullmatch(path.name):
            stem, digits, total = match.groups()
            expected |= {
                path.with_name(f"{stem}{number:0{len(digits)}d}-of-{total}.arrow")
                for number in range(int(total))
            }
    if missing := sorted(expected - there):
        raise MissingFileError(
            f"{field} must hold {missing[0].relative_to(folder)}, got {folder} with "
            f"{len(there)} files and {len(missing)} missing; download them again."
        )


def _check_columns(path: Path, table: Any, columns: Mapping[str, str]) -> None:
    """Raises UserError unless a table has the columns."""
    types = {field.name: str(field.type) for field in table.schema}
    for name, pattern in columns.items():
        if name not in types:
            raise UserError(
                f"{path} must have the column {name}, got {', '.join(types)}; give the "
                "data set with precomputed encodings."
            )
        if not re.fullmatch(pattern, types[name]):
            raise UserError(
                f"column {name} of {path} must be {pattern.replace('|', ' or ')}, got "
                f"{types[name]}; give the data set with precomputed encodings."
            )
