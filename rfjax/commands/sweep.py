# SPDX-License-Identifier: Apache-2.0
"""Trains the cells of a depth study."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rfjax import config as configs
from rfjax import schema
from rfjax.commands.flags import Report, SweepFields
from rfjax.commands.job import (
    flops_per_sample,
    make_mesh_for,
    read_manifest,
)
from rfjax.commands.train import train
from rfjax.config import Config
from rfjax.errors import UserError
from rfjax.models import make_model
from rfjax.scaling.study import budget
from rfjax.scaling.study.budget import CellCost, ForecastConfig
from rfjax.scaling.study.grid import Cell, GridConfig, make_cells
from rfjax.scaling.study.sweep import run_locally


@dataclasses.dataclass(frozen=True)
class Swept:
    """How a sweep ended.

    Attributes:
      failed: names of the cells that failed.
    """

    failed: Sequence[str] = ()

    @property
    def exit_status(self) -> int:
        """1 if a cell failed."""
        return int(bool(self.failed))

    def __str__(self) -> str:
        return f"failed: {', '.join(self.failed)}" if self.failed else ""


def sweep(
    fields: SweepFields,
    *,
    workdir: Path | str,
    dry_run: bool = False,
    report: Report = lambda line: None,
) -> Swept:
    """Trains the cells of a depth study one after the other, or resumes it.

    Args:
      fields: {"base": fields of a run config, "grid": fields of `GridConfig`,
        "forecast": fields of `ForecastConfig`, may be left out}.
      workdir: sweep folder; holds one run folder a cell and `runs.csv`.
      dry_run: print the table of cells with their cost and stop.
      report: receives the table and a line for each event.

    Raises:
      Stopped: a signal asked to stop; the cell under way is saved.
      UserError: if the grid or any cell's config is wrong, or by the pilot's law an
        optimum would lie on the edge of the grid; nothing was trained then.

    Example:
      rfjax sweep --config=configs/sweeps/emoji_depth.py --workdir=runs/depth --dry-run
    """
    for section in ("base", "grid"):
        if section not in fields:
            raise UserError(f"a sweep config must have the section {section}; add it.")
    workdir = Path(workdir)
    grid = schema.build(GridConfig, fields["grid"], prefix="grid.")
    expected = schema.build(
        ForecastConfig, fields.get("forecast", {}), prefix="forecast."
    )
    cells = make_cells(fields["base"], grid, flops_per_sample=_cost_per_sample)
    resolved = {cell.name: configs.from_config_dict(cell.fields) for cell in cells}
    costs = [_cost_of(cell, resolved[cell.name]) for cell in cells]
    for config in resolved.values():
        make_mesh_for(config)
    pilot = None
    if expected.pilot is not None:
        pilot = budget.read_pilot(expected.pilot)
        budget.check_edges(costs, pilot=pilot, budgets=grid.flop_budgets)
    speeds = budget.measured_speeds(workdir)
    seconds = {
        cost.name: budget.predicted_seconds(
            cost, speeds=speeds, flops_per_second=expected.flops_per_second
        )
        for cost in costs
    }
    report(budget.describe(costs, seconds=seconds, forecast=expected, pilot=pilot))
    if dry_run:
        return Swept()

    def train_cell(cell: Cell, folder: Path) -> None:
        train(
            resolved[cell.name],
            workdir=folder,
            branch_from=workdir / cell.trunk if cell.trunk else None,
            report=lambda line: None,
        )

    return Swept(
        run_locally(
            cells,
            workdir=workdir,
            train_cell=train_cell,
            flops_of_cell={cost.name: cost.new_flops for cost in costs},
            report=report,
        )
    )


def _cost_per_sample(fields: Mapping[str, Any]) -> float:
    """Training FLOPs of one sample of a run config."""
    config = configs.from_config_dict(fields)
    return flops_per_sample(config, read_manifest(config))


def _cost_of(cell: Cell, config: Config) -> CellCost:
    """What a cell of a sweep is and adds."""
    model = make_model(config.model)
    per_sample = flops_per_sample(config, read_manifest(config))
    batch_size = config.train.global_batch_size
    samples = cell.num_steps * batch_size
    shared = cell.fork_step * batch_size if cell.trunk else 0
    return CellCost(
        name=cell.name,
        depth=config.model.depth,
        sizes={
            "params": model.num_params,
            "params_without_adaln": model.num_params_without_adaln,
            "flops": per_sample,
        },
        samples=samples,
        flops=samples * per_sample,
        new_flops=(samples - shared) * per_sample,
        is_point=not cell.is_trunk,
    )
