# SPDX-License-Identifier: Apache-2.0
"""Records of several places under one numbering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rfjax.data.numbering import Numbering


class JoinedRecords(Sequence):
    """The records of several sources, those of one after those of the other.

    Args:
      sources: each a sequence of records, which may have `name_of`.
    """

    def __init__(self, sources: Sequence[Sequence]):
        self._sources = tuple(sources)
        self._numbering = Numbering(map(len, self._sources))

    def __len__(self) -> int:
        return len(self._numbering)

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray | bytes]:
        source, own = self._numbering.place(index)
        return self._sources[source][own]

    def name_of(self, index: int) -> str:
        """The record in words, as its source says it."""
        source, own = self._numbering.place(index)
        return name_of_record(self._sources[source], own)


def name_of_record(records: Sequence, index: int) -> str:
    """A record in words, with its file if it is in one."""
    if hasattr(records, "name_of"):
        return records.name_of(index)
    return f"record {index}"
