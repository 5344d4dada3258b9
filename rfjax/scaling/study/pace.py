# SPDX-License-Identifier: Apache-2.0
"""How long the rest of a sweep takes, by what has been measured so far."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rfjax.errors import UserError
from rfjax.scaling.study.budget import measured_speeds, predicted_seconds
from rfjax.scaling.study.manifest import SweepCell

# Larger models use a machine better; over this ratio of depths the speed of one says
# what another takes to within a factor of two.
_KNOWN_TO = 2


class Pace:
    """Speeds by depth, and what a cell takes besides its steps.

    Compilation, validation and saving take about as long in a short cell as in a long
    one, so time does not go by FLOPs alone.
    """

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._seconds: list[tuple[SweepCell, float]] = []

    def add(self, cell: SweepCell, *, seconds: float) -> None:
        """Remembers what a cell took from its start to its end."""
        self._seconds.append((cell, seconds))

    def seconds_left(self, cells: Sequence[SweepCell]) -> float | None:
        """Seconds that cells will take; None as long as a guess would be far off.

        That is before the first cell has finished here, and while there are models of
        more than twice the depth of any that has trained in the sweep folder.
        """
        try:
            speeds = measured_speeds(self._workdir)
        except UserError:  # a damaged run is for whoever needs what is in it
            return None
        if not self._seconds or not speeds:
            return None
        if any(cell.depth is None for cell in cells):  # listed by an earlier version
            return None
        if max((cell.depth for cell in cells), default=0) > _KNOWN_TO * max(speeds):
            return None
        besides = [
            max(0.0, seconds - predicted_seconds(cell, speeds=speeds))
            for cell, seconds in self._seconds
        ]
        overhead = sum(besides) / len(besides)
        return sum(predicted_seconds(cell, speeds=speeds) + overhead for cell in cells)
