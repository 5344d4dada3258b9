# SPDX-License-Identifier: Apache-2.0
"""One numbering of what lies in several parts, such as the rows of several files."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable


class Numbering:
    """Numbers from 0 what is in the parts, that of one after that of the other.

    Args:
      lengths: of the parts; those of some may be 0.
    """

    def __init__(self, lengths: Iterable[int]):
        # Number of the first thing after each part.
        self._ends = tuple(itertools.accumulate(lengths))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, index: int) -> tuple[int, int]:
        """Number of the part in which a thing is, and its number there.

        Raises:
          IndexError: there is no thing of that number.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect.bisect_right(self._ends, index)
        return part, index - (self._ends[part - 1] if part else 0)
