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
_MAX_INTERPOLATED = 7
_MIN_SPACING = 1.5  # ratio of neighbouring budgets; closer ones are redundant
# Rows of one budget cost nearly the same: whole steps, and FLOPs that were counted or
# read off a figure, differ a little. Ratios of neighbouring rows, and of all.
_SAME_BUDGET, _WIDEST_BUDGET = 1.1, 1.5
_SAME_SIZE = 1 + 1e-6


@dataclasses.dataclass(frozen=True)
class IsoFlop:
    """The parabola of log-loss over log size at one budget.

    Attributes:
      flops: the budget, training FLOPs.
      num_rows: rows of the table at that budget; 0 if the losses are interpolated.
      sizes: [m] sizes with a loss at that budget.
      losses: [m] their losses.
      curve: coefficients of the parabola of log-loss over log size, from the square
        down; None from too few sizes.
      best_size: minimum of the parabola, NaN if it does not lie between the sizes.
      best_loss: value of the parabola there.
      reason: why there is no best size, empty if there is one.
    """

    flops: float
    num_rows: int
    sizes: np.ndarray
    losses: np.ndarray
    curve: np.ndarray | None
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
    """Fits one parabola per budget, to the losses of the sizes at that budget.

    Budgets are those of the table if most of its rows lie on some: FLOPs within 10 % of
    each other are one budget. Otherwise, as for a grid of sizes and samples, the loss
    of each size is interpolated between its points, at up to seven budgets that four
    sizes cover, in log-log; nothing is extrapolated. Repetitions of a cell (seeds)
    enter by their median.

    Args:
      table: runs table with train_flops.
      loss: column of the loss.
      size_measure: what size is.

    Returns: one entry per budget, cheapest first, also for those with too few sizes for
      a parabola; empty if the table has no budgets and no four sizes cover one.
    """
    require_columns(table, ["train_flops", loss])
    sizes = size_of(table, size_measure=size_measure)
    rows = table[[]].assign(
        log_flops=np.log(table["train_flops"].to_numpy(float)),
        log_size=np.log(sizes.to_numpy(float)),
        log_loss=np.log(table[loss].to_numpy(float)),
    )
    rows["size"] = _groups(rows["log_size"], ratio=_SAME_SIZE)
    rows["budget"] = _groups(rows["log_flops"], ratio=_SAME_BUDGET)
    return _at_budgets_of_table(rows) or _at_interpolated_budgets(rows)


def _groups(log_values: pd.Series, *, ratio: float) -> np.ndarray:
    """[n] numbers of groups; neighbours of a group differ by no more than a ratio."""
    order = np.argsort(log_values.to_numpy())
    jumps = np.diff(log_values.to_numpy()[order]) > np.log(ratio)
    groups = np.empty(len(order), dtype=int)
    groups[order] = np.concatenate([[0], np.cumsum(jumps)])
    return groups


def _at_budgets_of_table(rows: pd.DataFrame) -> list[IsoFlop]:
    """Parabolas at the budgets that rows share; none unless most rows do."""
    found = []
    for _, group in rows.groupby("budget"):
        losses = group.groupby("size")[["log_size", "log_loss"]].median()
        found.append(
            _parabola(
                float(group["log_flops"].median()),
                losses["log_size"].to_numpy(),
                losses["log_loss"].to_numpy(),
                num_rows=len(group),
                ratio=float(np.exp(np.ptp(group["log_flops"]))),
            )
        )
    shared = sum(parabola.num_rows for parabola in found if parabola.curve is not None)
    return found if 2 * shared >= len(rows) else []


def _at_interpolated_budgets(rows: pd.DataFrame) -> list[IsoFlop]:
    """Parabolas at budgets in the range that four sizes cover."""
    curves = []
    for _, of_size in rows.groupby("size"):
        by_cost = of_size.groupby("log_flops")["log_loss"].median()
        log_flops = by_cost.index.to_numpy()
        curves.append((of_size["log_size"].median(), log_flops, by_cost.to_numpy()))
    covered = covered_range(
        [(log_flops[0], log_flops[-1]) for _, log_flops, _ in curves],
        num_sizes=_MIN_SIZES,
    )
    if covered is None:
        return []
    lowest, highest = covered
    room = int((highest - lowest) / np.log(_MIN_SPACING)) + 1
    found = []
    for log_budget in np.linspace(lowest, highest, min(room, _MAX_INTERPOLATED)):
        at_budget = [
            (log_size, float(np.interp(log_budget, log_flops, log_loss)))
            for log_size, log_flops, log_loss in curves
            if log_flops[0] - 1e-9 <= log_budget <= log_flops[-1] + 1e-9
        ]
        if len(at_budget) >= _MIN_SIZES:
            points = map(np.array, zip(*at_budget, strict=True))
            found.append(_parabola(log_budget, *points))
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


def _parabola(
    log_flops: float,
    log_sizes: np.ndarray,
    log_losses: np.ndarray,
    *,
    num_rows: int = 0,
    ratio: float = 1.0,
) -> IsoFlop:
    """Fits log-loss over log size by a parabola, and finds its minimum.

    Args:
      log_flops: of the budget.
      log_sizes: [m] sizes at that budget.
      log_losses: [m] their losses.
      num_rows: see `IsoFlop`.
      ratio: FLOPs of the most expensive row over those of the cheapest.
    """
    curve, best_size, best_loss = None, np.nan, np.nan
    if len(log_sizes) < _MIN_SIZES:
        plural = "s" * (len(log_sizes) != 1)
        reason = f"{len(log_sizes)} size{plural}, at least {_MIN_SIZES} are needed"
    elif ratio > _WIDEST_BUDGET:
        reason = f"its rows are no one budget: their FLOPs differ {ratio:.2g}-fold"
    else:
        curve = np.polyfit(log_sizes, log_losses, 2)
        reason = _why_no_minimum(curve, log_sizes)
    if not reason:
        best = -curve[1] / (2 * curve[0])
        best_size = float(np.exp(best))
        best_loss = float(np.exp(np.polyval(curve, best)))
    return IsoFlop(
        flops=float(np.exp(log_flops)),
        num_rows=num_rows,
        sizes=np.exp(log_sizes),
        losses=np.exp(log_losses),
        curve=curve,
        best_size=best_size,
        best_loss=best_loss,
        reason=reason,
    )


def _why_no_minimum(curve: np.ndarray, log_sizes: np.ndarray) -> str:
    """Why a parabola has no minimum between the sizes; empty if it has one."""
    if curve[0] <= 0:
        return "no minimum: the curve bends downwards"
    best = -curve[1] / (2 * curve[0])
    if best < log_sizes.min():
        return "the minimum lies below the smallest size"
    if best > log_sizes.max():
        return "the minimum lies above the largest size"
    return ""


def isoflop_exponent(parabolas: list[IsoFlop]) -> float | None:
    """The power a of N_opt ~ C^a through the minima; None from fewer than two."""
    minima = [(p.flops, p.best_size) for p in parabolas if not p.reason]
    if len(minima) < 2:
        return None
    log_flops, log_sizes = np.log(np.array(minima)).T
    return float(np.polyfit(log_flops, log_sizes, 1)[0])
