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


_MIN_INTERVALS = 3  # of which one may include compilation


class Pace:
    """Speeds by depth, and what a cell takes besides its steps.

    The first cell of a depth compiles, and every cell validates and saves, which takes
    about as long in a short cell as in a long one: time does not go by FLOPs alone.
    """

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._seconds: list[tuple[SweepCell, float]] = []

    def add(self, cell: SweepCell, *, seconds: float) -> None:
        """Remembers what a cell took here from its start to its end."""
        self._seconds.append((cell, seconds))

    def seconds_left(self, cells: Sequence[SweepCell]) -> float | None:
        """Seconds that cells will take, in order; None as long as that is a wild guess.

        So it is before a cell that compiles and one that does not have finished here,
        and while there are models of more than twice the depth of any whose speed is
        known from the sweep folder.
        """
        try:
            speeds = measured_speeds(self._workdir, min_intervals=_MIN_INTERVALS)
        except UserError:  # a damaged run is for whoever needs what is in it
            return None
        depths = [cell.depth for cell in cells]
        if not speeds or None in depths:  # not in lists of earlier versions
            return None
        if max(depths, default=0) > _KNOWN_TO * max(speeds):
            return None
        seen: set[int | None] = set()
        besides: dict[bool, list[float]] = {True: [], False: []}  # by: compiles
        for cell, seconds in self._seconds:
            training = predicted_seconds(cell, speeds=speeds)
            besides[cell.depth not in seen].append(max(0.0, seconds - training))
            seen.add(cell.depth)
        left = 0.0
        for cell in cells:
            known = besides[cell.depth not in seen]
            if not known:
                return None
            left += predicted_seconds(cell, speeds=speeds) + sum(known) / len(known)
            seen.add(cell.depth)
        return left
