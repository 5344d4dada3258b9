# SPDX-License-Identifier: Apache-2.0
"""The compute frontier and the isoFLOP parabolas, read off the points themselves.

Both are cross-checks of the law L(N, D): they need no law of two inputs, at the price
of bias (the curves are not parabolas: Czech et al. 2026, arXiv:2603.22339).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rfjax.scaling.laws.points import require_columns, size_of

if TYPE_CHECKING:
    import pandas as pd

_MIN_SIZES = 4  # a parabola fits any three points; a fourth can contradict it
_MAX_BUDGETS = 7
_MIN_SPACING = 1.5  # ratio of neighbouring budgets; closer ones are redundant


@dataclasses.dataclass(frozen=True)
class IsoFlop:
    """The parabola of log-loss over log size at one budget.

    Attributes:
      flops: the budget, training FLOPs.
      sizes: [m] sizes with a loss at that budget.
      losses: [m] their losses.
      best_size: minimum of the parabola, NaN if it does not lie between the sizes.
      best_loss: value of the parabola there.
      reason: why there is no best size, empty if there is one.
    """

    flops: float
    sizes: np.ndarray
    losses: np.ndarray
    best_size: float
    best_loss: float
    reason: str


def frontier(table: pd.DataFrame, *, loss: str) -> pd.DataFrame:
    """Rows that no other row beats in both training FLOPs and loss, cheapest first."""
    require_columns(table, ["train_flops", loss])
    ordered = table.sort_values(["train_flops", loss])
    best_before = ordered[loss].cummin().shift(fill_value=np.inf)
    return ordered[ordered[loss] < best_before]


def isoflop_parabolas(
    table: pd.DataFrame, *, loss: str, size_measure: str
) -> list[IsoFlop]:
    """Fits one parabola per budget, to losses interpolated along each size.

    The loss of a size at a budget is interpolated between its two nearest points, in
    log-log; nothing is extrapolated. Budgets are evenly spaced in log FLOPs over the
    range in which at least four sizes have points on both sides. Repetitions of a
    cell (seeds) enter by their median.

    Args:
      table: runs table with train_flops.
      loss: column of the loss.
      size_measure: what size is.

    Returns: one entry per budget; empty if no budget is covered by four sizes.
    """
    require_columns(table, ["train_flops", loss])
    curves = []
    sizes = size_of(table, size_measure=size_measure)
    for size, rows in table.groupby(sizes.round(6)):
        by_cost = rows.groupby("train_flops")[loss].median().sort_index()
        curves.append(
            (size, np.log(by_cost.index.to_numpy(float)), np.log(by_cost.to_numpy()))
        )
    covered = covered_range(
        [(log_flops[0], log_flops[-1]) for _, log_flops, _ in curves],
        num_sizes=_MIN_SIZES,
    )
    if covered is None:
        return []
    lowest, highest = covered
    room = int((highest - lowest) / np.log(_MIN_SPACING)) + 1
    found = []
    for log_budget in np.linspace(lowest, highest, min(room, _MAX_BUDGETS)):
        at_budget = [
            (size, float(np.interp(log_budget, log_flops, log_loss)))
            for size, log_flops, log_loss in curves
            if log_flops[0] - 1e-9 <= log_budget <= log_flops[-1] + 1e-9
        ]
        if len(at_budget) >= _MIN_SIZES:
            found.append(
                _parabola(
                    np.exp(log_budget), *map(np.array, zip(*at_budget, strict=True))
                )
            )
    return found


def covered_range(
    ranges: Sequence[tuple[float, float]], *, num_sizes: int
) -> tuple[float, float] | None:
    """The range of budgets that enough sizes cover, None if there is none.

    Args:
      ranges: cheapest and most expensive budget of each size.
      num_sizes: how many sizes must have points on both sides of each budget.
    """
    if len(ranges) < num_sizes:
        return None
    starts, ends = map(sorted, zip(*ranges, strict=True))
    lowest, highest = starts[num_sizes - 1], ends[-num_sizes]
    return (lowest, highest) if lowest <= highest else None


def _parabola(flops: float, sizes: np.ndarray, log_losses: np.ndarray) -> IsoFlop:
    """Fits log-loss over log size by a parabola, and finds its minimum."""
    log_sizes = np.log(sizes)
    curvature, slope, constant = np.polyfit(log_sizes, log_losses, 2)
    best, reason = -slope / (2 * curvature), ""
    if curvature <= 0:
        reason = "no minimum: the curve bends downwards"
    elif best < log_sizes.min():
        reason = "the minimum lies below the smallest size"
    elif best > log_sizes.max():
        reason = "the minimum lies above the largest size"
    best_size, best_loss = np.nan, np.nan
    if not reason:
        best_size = float(np.exp(best))
        best_loss = float(np.exp(constant - slope**2 / (4 * curvature)))
    return IsoFlop(
        float(flops), sizes, np.exp(log_losses), best_size, best_loss, reason
    )


def isoflop_exponent(parabolas: list[IsoFlop]) -> float | None:
    """The power a of N_opt ~ C^a through the minima; None from fewer than two."""
    minima = [(p.flops, p.best_size) for p in parabolas if not p.reason]
    if len(minima) < 2:
        return None
    log_flops, log_sizes = np.log(np.array(minima)).T
    return float(np.polyfit(log_flops, log_sizes, 1)[0])
