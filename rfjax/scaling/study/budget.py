# SPDX-License-Identifier: Apache-2.0
"""What a sweep will cost, and whether its grid can show an optimum: before it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rfjax import run_folder, whole_files
from rfjax.errors import MissingFileError, UserError
from rfjax.scaling.laws.frontier import covered_range
from rfjax.scaling.study.manifest import SweepCell
from rfjax.value_types import InputPath, PositiveFloat, check_fields

_MIN_DEPTHS = 3  # with two, an optimum between them looks like one at their ends


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForecastConfig:
    """What is known before a sweep; every field may be left out.

    Attributes:
      pilot: `fit.json` of an earlier, smaller study with the law "chinchilla": gives
        each cell a predicted loss, and refuses grids whose optimum lies on an edge.
      flops_per_second: model FLOP/s that the machine sustains; unused once a run in
        the sweep folder has measured them.
      price_per_hour: of the machine, in any currency.
    """

    pilot: InputPath | None = None
    flops_per_second: PositiveFloat | None = None
    price_per_hour: PositiveFloat | None = None

    def __post_init__(self):
        check_fields(self, section="forecast")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellCost:
    """One row of the dry run.

    Attributes:
      name: of the cell.
      depth: number of blocks.
      sizes: size measure -> value, as in the runs table.
      samples: examples seen at its end, those of a shared trunk included.
      flops: training FLOPs of those samples: what its point counts as.
      new_flops: what training the cell adds, a shared trunk left out.
      is_point: whether its end is a point of the law (not so for a trunk).
    """

    name: str
    depth: int
    sizes: Mapping[str, float]
    samples: int
    flops: float
    new_flops: float
    is_point: bool


@dataclasses.dataclass(frozen=True)
class Pilot:
    """The law of an earlier study: E + A / size^alpha + B / samples^beta."""

    size_measure: str
    parameters: Mapping[str, float]

    def loss(self, size: float, samples: float) -> float:
        """Predicted loss."""
        E, A, B, alpha, beta = (
            self.parameters[name] for name in ("E", "A", "B", "alpha", "beta")
        )
        return E + A / size**alpha + B / samples**beta


def read_pilot(path: Path | str) -> Pilot:
    """The law in a `fit.json`.

    Raises:
      MissingFileError: if there is no such file.
      UserError: if it holds no law of size and samples.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"forecast.pilot {path} does not exist; give a fit.json, or leave it out."
        )
    document = whole_files.read_json(path)
    if document.get("law") != "chinchilla":
        raise UserError(
            f"forecast.pilot {path} must hold a fit of the law chinchilla, got "
            f"{document.get('law')!r}; make one with `rfjax fit`."
        )
    names = ("E", "A", "B", "alpha", "beta")
    values = {name: document[name]["value"] for name in names}
    return Pilot(document["size_measure"], values)


def measured_speeds(workdir: Path, *, min_intervals: int = 1) -> dict[int, float]:
    """Depth -> model FLOP/s of the runs in a sweep folder, the median over intervals.

    Intervals in which a process starts include its compilation; the median of three or
    more ignores them.

    Args:
      workdir: sweep folder.
      min_intervals: of a depth; with fewer it is left out.
    """
    speeds: dict[int, list[float]] = {}
    for path in sorted(Path(workdir).glob(f"*/{run_folder.RUN_FILE}")):
        run = run_folder.read_run(
            path.parent, required=("depth", "train_flops_per_sample")
        )
        for line in run_folder.read_metrics(path.parent):
            if "perf/samples_per_second" in line:
                speeds.setdefault(run["depth"], []).append(
                    line["perf/samples_per_second"] * run["train_flops_per_sample"]
                )
    return {
        depth: float(np.median(values))
        for depth, values in speeds.items()
        if len(values) >= min_intervals
    }


def predicted_seconds(
    cost: CellCost | SweepCell,
    *,
    speeds: Mapping[int, float],
    flops_per_second: float | None = None,
) -> float | None:
    """Time to train a cell at the speed of its depth, or of the nearest one measured.

    Validation, saving and compilation come on top.
    """
    if speeds:
        nearest = min(speeds, key=lambda depth: abs(np.log(depth / cost.depth)))
        return cost.new_flops / speeds[nearest]
    return cost.new_flops / flops_per_second if flops_per_second else None


def check_edges(
    costs: Sequence[CellCost],
    *,
    pilot: Pilot,
    budgets: Sequence[float],
) -> None:
    """Refuses a grid in which the best depth of a budget would be its first or last.

    Args:
      costs: the cells.
      pilot: the law that is expected.
      budgets: training FLOPs at which depths are compared; by default those of a grid
        of samples, at which at least three depths lie between their own budgets, are
        used, and one with its optimum inside is enough.

    Raises:
      UserError: naming the budget, the best depth and what to add.
    """
    points = [cost for cost in costs if cost.is_point]
    size_of = {cost.depth: cost.sizes[pilot.size_measure] for cost in points}
    flops_per_sample = {cost.depth: cost.flops / cost.samples for cost in points}
    depths = sorted(size_of)
    must_hold_for_all = bool(budgets)
    budgets = budgets or _covered_budgets(points)
    edge_of = {}
    for budget in budgets:
        losses = [
            pilot.loss(size_of[depth], budget / flops_per_sample[depth])
            for depth in depths
        ]
        best = depths[int(np.argmin(losses))]
        if best in (depths[0], depths[-1]):
            edge_of[budget] = best
    if not budgets or len(edge_of) == 0:
        return
    if must_hold_for_all or len(edge_of) == len(budgets):
        budget, best = next(iter(edge_of.items()))
        where = "smaller" if best == depths[0] else "larger"
        raise UserError(
            f"the best depth of {budget:.2e} training FLOPs must lie inside "
            f"grid.depths {depths}, by the pilot's law it is {best} or {where}; add "
            f"{where} depths, or "
            f"{'raise' if best == depths[0] else 'lower'} the budget."
        )


def _covered_budgets(points: Sequence[CellCost]) -> list[float]:
    """Budgets between the cheapest and most expensive cell of three depths or more."""
    ranges = {}
    for cost in points:
        low, high = ranges.get(cost.depth, (np.inf, 0.0))
        ranges[cost.depth] = min(low, cost.flops), max(high, cost.flops)
    covered = covered_range(list(ranges.values()), num_sizes=_MIN_DEPTHS)
    return [] if covered is None else list(np.geomspace(*covered, 5))


def describe(
    costs: Sequence[CellCost],
    *,
    seconds: Mapping[str, float | None],
    forecast: ForecastConfig,
    pilot: Pilot | None,
) -> str:
    """The table of a dry run, with its totals.

    Args:
      costs: the cells.
      seconds: name -> predicted time to train, None if unknown.
      forecast: what is known of the machine.
      pilot: law that predicts losses, if there is one.
    """
    width = max(len(cost.name) for cost in costs)
    header = (
        f"{'cell':<{width}} {'params':>12} {'samples':>10} {'FLOPs':>9} "
        f"{'to train':>9} {'time':>8}"
    )
    has_price = forecast.price_per_hour is not None
    header += f" {'price':>8}" if has_price else ""
    header += f" {'loss':>7}" if pilot else ""
    lines = [header]

    def row(
        name: str, sizes: Sequence[str], new_flops: float, time: float | None, loss: str
    ) -> str:
        """One line: name, (params, samples, FLOPs), what is to be paid, the loss."""
        params, samples, flops = sizes
        text = (
            f"{name:<{width}} {params:>12} {samples:>10} {flops:>9} {new_flops:>9.2e} "
            f"{_duration(time):>8}"
        )
        if has_price:
            price = None if time is None else time / 3600 * forecast.price_per_hour
            text += f" {'-' if price is None else f'{price:.2f}':>8}"
        return text + (f" {loss:>7}" if pilot else "")

    for cost in costs:
        loss = "trunk"
        if pilot and cost.is_point:
            predicted = pilot.loss(cost.sizes[pilot.size_measure], cost.samples)
            loss = f"{predicted:.5g}"
        sizes = (
            f"{cost.sizes['params']:,.0f}",
            f"{cost.samples:,}",
            f"{cost.flops:.2e}",
        )
        lines.append(row(cost.name, sizes, cost.new_flops, seconds[cost.name], loss))
    times = [seconds[cost.name] for cost in costs]
    total = None if None in times else sum(times)
    new_flops = sum(cost.new_flops for cost in costs)
    num_points = sum(cost.is_point for cost in costs)
    lines.append(row(f"{num_points} points", ("", "", ""), new_flops, total, ""))
    if total is None:
        lines.append(
            "time: unknown until a cell has run; or set forecast.flops_per_second."
        )
    if pilot is None:
        lines.append(
            "loss, and whether an optimum lies inside the grid: unknown without "
            "forecast.pilot, the fit.json of a smaller study."
        )
    return "\n".join(lines)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
