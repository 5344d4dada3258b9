# SPDX-License-Identifier: Apache-2.0
"""Rows of a parquet file at random, by row groups; the last few are kept."""

from __future__ import annotations

import functools
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rfjax.data.numbering import Numbering
from rfjax.data.sources.columns import find
from rfjax.data.sources.pictures import BrokenPicture
from rfjax.errors import UserError, refusal_of_disk
from rfjax.packages import import_package

_KEPT_GROUPS = 2


class ParquetTable:
    """A parquet file; its memory is that of two row groups of what is asked for.

    Attributes:
      columns: names of all columns.
    """

    def __init__(self, path: Path, *, named: Collection[str] = ()):
        """Opens a file.

        Args:
          path: of the file.
          named: columns that belong to a row even if they hold bytes.

        Raises:
          UserError: it is no parquet file.
        """
        arrow = import_package("pyarrow", use="parquet files")
        parquet = import_package("pyarrow.parquet", use="parquet files")
        try:
            self._file = parquet.ParquetFile(path, memory_map=True)
        except arrow.ArrowException as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path} must be a whole parquet file, got: {reason}; copy it again, "
                "or leave it out."
            ) from error
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._numbering = Numbering(sizes)
        schema = self._file.schema_arrow
        self.columns: Collection[str] = schema.names
        self._of_rows = tuple(
            f.name for f in schema if f.name in named or not has_bytes(f.type)
        )
        # A file is read by one thread at a time.
        self._lock = threading.Lock()
        self._group = functools.lru_cache(2 * _KEPT_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return len(self._numbering)

    def row(self, index: int, *, key: str) -> Mapping[str, Any]:
        """Column -> value, of all columns but those with bytes.

        Args:
          index: of the row.
          key: of the row, for errors.

        Raises:
          BrokenPicture: its row group is damaged.
        """
        return self._values(index, self._of_rows, key)

    def cell(self, index: int, column: str, *, key: str) -> Any:
        """The value of one column.

        Args:
          index: of the row.
          column: its name.
          key: of the row, for errors.

        Raises:
          BrokenPicture: its row group is damaged.
        """
        top = column if column in self.columns else column.split(".")[0]
        return find(self._values(index, (top,), key), column)

    def _values(self, index: int, columns: tuple[str, ...], key: str) -> dict[str, Any]:
        import pyarrow

        group, place = self._numbering.place(index)
        try:
            with self._lock:
                rows = self._group(group, columns)
            (row,) = rows.slice(place, 1).to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            if refusal_of_disk(error) is not None:
                raise  # the disk is broken, not the row
            raise BrokenPicture(
                f"row {key} must be readable, got: {' '.join(str(error).split())[:200]}"
                "; copy the file again."
            ) from error
        return row

    def _read_group(self, group: int, columns: tuple[str, ...]) -> Any:
        return self._file.read_row_group(group, columns=list(columns))


def has_bytes(kind: Any) -> bool:
    """Whether an Arrow type holds bytes, at any depth."""
    import pyarrow.types

    if kind.num_fields:
        return any(has_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return (
        pyarrow.types.is_binary(kind)
        or pyarrow.types.is_large_binary(kind)
        or pyarrow.types.is_fixed_size_binary(kind)
        or pyarrow.types.is_binary_view(kind)
    )
