# SPDX-License-Identifier: Apache-2.0
"""Records of several places under one numbering."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence

import numpy as np


class JoinedRecords(Sequence):
    """The records of several sources, those of one after those of the other.

    Args:
      sources: each a sequence of records, which may have `name_of`.
    """

    def __init__(self, sources: Sequence[Sequence]):
        self._sources = tuple(sources)
        # Number of the first record after each source.
        self._ends = tuple(itertools.accumulate(map(len, self._sources)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray | bytes]:
        source, own = self._find(index)
        return source[own]

    def name_of(self, index: int) -> str:
        """The record in words, as its source says it."""
        source, own = self._find(index)
        return name_of_record(source, own)

    def _find(self, index: int) -> tuple[Sequence, int]:
        """The source of a record, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        source = self._sources[number]
        return source, index - self._ends[number] + len(source)


def name_of_record(records: Sequence, index: int) -> str:
    """A record in words, with its file if it is in one."""
    if hasattr(records, "name_of"):
        return records.name_of(index)
    return f"record {index}"
