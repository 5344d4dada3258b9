# SPDX-License-Identifier: Apache-2.0
"""The grid of a depth-scaling study: which models are trained for how long."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Depths, lengths and seeds, and the rules that turn them into run configs.

    Attributes:
      depths: one model size each.
      num_steps: run lengths; every run cools down at its own end, so that each gives
        one point of the scaling law.
      seeds: repetitions of every cell.
      cooldown_fraction: last part of a run in which the learning rate falls to zero.
      reference_depth: depth at which `optimizer.learning_rate` of the base is used.
      learning_rate_exponent: the rate of depth d is that of the reference times
        (d / reference_depth) ** exponent; -1 follows the width, 0 uses one rate.
    """

    depths: tuple[int, ...]
    num_steps: tuple[int, ...]
    seeds: tuple[int, ...] = (0,)
    cooldown_fraction: float = 0.2
    reference_depth: int = 2
    learning_rate_exponent: float = -0.5

    def __post_init__(self):
        for field in ("depths", "num_steps", "seeds"):
            values = getattr(self, field)
            if not values or len(set(values)) < len(values):
                raise ValueError(
                    f"grid.{field} must hold different values, at least one, "
                    f"got {list(values)}."
                )
            if min(values) < (0 if field == "seeds" else 1):
                raise ValueError(f"grid.{field} must be positive, got {list(values)}.")
        if not 0 <= self.cooldown_fraction < 1:
            raise ValueError(
                "grid.cooldown_fraction must be in [0, 1), "
                f"got {self.cooldown_fraction}; 0.2 is usual."
            )
        if self.reference_depth < 1:
            raise ValueError(
                f"grid.reference_depth must be at least 1, got {self.reference_depth}."
            )


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
      name: of its run folder.
      fields: its run config, as a dict.
    """

    name: str
    fields: Mapping[str, Any]


def make_cells(base: Mapping[str, Any], grid: GridConfig) -> Sequence[Cell]:
    """One cell for each (depth, length, seed), small and short ones first.

    Args:
      base: fields of a run config; depth, length, seed, rate and cooldown are set here.
      grid: what to vary.
    """
    cells = []
    for depth in sorted(grid.depths):
        for num_steps in sorted(grid.num_steps):
            for seed in grid.seeds:
                fields = copy.deepcopy(dict(base))
                fields["seed"] = seed
                fields["model"]["depth"] = depth
                fields["train"]["num_steps"] = num_steps
                fields["optimizer"]["cooldown_steps"] = round(
                    grid.cooldown_fraction * num_steps
                )
                fields["optimizer"]["learning_rate"] *= (
                    depth / grid.reference_depth
                ) ** grid.learning_rate_exponent
                cells.append(Cell(f"d{depth:02d}-s{num_steps}-seed{seed}", fields))
    return cells
