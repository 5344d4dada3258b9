# SPDX-License-Identifier: Apache-2.0
"""Records of TFRecord files at random, without TensorFlow."""

from __future__ import annotations

import array
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rfjax.data.numbering import Numbering
from rfjax.errors import UserError


class TfRecords(Sequence):
    """The records of TFRecord files at random; 16 bytes of memory each.

    Each record is its length (8 bytes), a checksum (4), its bytes and another (4).
    """

    def __init__(self, paths: Sequence[str]):
        """Reads the lengths of all records.

        Args:
          paths: of the files; not compressed.

        Raises:
          UserError: a file ends within a record.
        """
        self._paths = paths
        self._spans = [_spans(path) for path in paths]
        self._numbering = Numbering(map(len, self._spans))

    def __len__(self) -> int:
        return len(self._numbering)

    def __getitem__(self, index: int) -> bytes:
        file, record = self._numbering.place(index)
        start, stop = map(int, self._spans[file][record])
        with open(self._paths[file], "rb") as records:
            records.seek(start)
            return records.read(stop - start)


def _spans(path: str) -> np.ndarray:
    """Where the bytes of each record of a TFRecord file begin and end: [N, 2] int64."""
    size = Path(path).stat().st_size
    spans, place = array.array("q"), 0
    if size:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as records,
        ):
            while place + 12 <= size:
                start = place + 12
                stop = start + struct.unpack_from("<Q", records, place)[0]
                spans.extend((start, stop))
                place = stop + 4
    if place != size:
        raise UserError(
            f"{path} must be a whole TFRecord file, got one that ends within a record; "
            "copy it again."
        )
    return np.array(spans, np.int64).reshape(-1, 2)
