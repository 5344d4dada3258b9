# SPDX-License-Identifier: Apache-2.0
"""The depth study: its sweep, and the check that learning rates transfer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rfjax import config as configs
from rfjax import run_folder, schema, whole_files
from rfjax.commands.job import (
    Report,
    flops_per_sample,
    make_mesh_for,
    make_stream,
    read_manifest,
)
from rfjax.commands.training import train
from rfjax.config import Config
from rfjax.errors import UserError
from rfjax.flow import formulations
from rfjax.models import flops
from rfjax.scaling.study import budget, launchers
from rfjax.scaling.study.budget import CellCost, ForecastConfig, Pilot
from rfjax.scaling.study.grid import Cell, GridConfig, make_cells
from rfjax.scaling.study.manifest import SweepCell
from rfjax.scaling.study.sweep import choose_cells, write_cells
from rfjax.scaling.transfer.coordinates import check_coordinates, fit_slopes
from rfjax.train.parameterisation import PARAMETERISATIONS

COORDINATES_FILE = "coordinates.json"
_SECTIONS = ("base", "grid", "forecast", "launchers")  # of a sweep config


def sweep(
    fields: Mapping[str, Any],
    *,
    workdir: Path | str,
    dry_run: bool = False,
    launcher: str = "local",
    cells: Sequence[str] = (),
    report: Report,
) -> list[str]:
    """Writes the cells of a depth study as files and has them trained, or resumed.

    Args:
      fields: {"base": fields of a run config, "grid": fields of `GridConfig`}, and,
        may be left out, {"forecast": fields of `ForecastConfig`, "launchers": kind ->
        fields of that launcher}.
      workdir: sweep folder; holds `sweep.json`, one run folder per cell, `runs.csv`.
      dry_run: report the table of cells with their cost and stop.
      launcher: who trains them, a key of `LAUNCHERS`; "local": this process, one cell
        after the other.
      cells: names of the only cells to train now, with the trunks that they branch
        from; all of them if empty. The files of the others are written all the same.
      report: receives the table and a line for each event.

    Returns:
      Names of the cells that failed.

    Raises:
      Stopped: a signal asked to stop; the cell under way is saved.
      UserError: if the grid or any cell's config is wrong, a cell was started with
        another config, or by the pilot's law an optimum would lie on the edge of the
        grid; nothing was written or trained then.
    """
    _check_sections(fields)
    workdir = Path(workdir)
    chosen_launcher = launchers.make_launcher(launcher, fields.get("launchers", {}))
    grid = schema.build(GridConfig, fields["grid"], prefix="grid.")
    forecast = schema.build(
        ForecastConfig, fields.get("forecast", {}), prefix="forecast."
    )
    grid_cells = make_cells(fields["base"], grid, flops_per_sample=_cost_per_sample)
    resolved = {c.name: configs.from_config_dict(c.fields) for c in grid_cells}
    costs = [_cost_of(cell, resolved[cell.name]) for cell in grid_cells]
    sweep_cells = [
        _as_listed(cell, cost) for cell, cost in zip(grid_cells, costs, strict=True)
    ]
    chosen = choose_cells(sweep_cells, cells)
    if chosen_launcher.runs_here:
        for config in resolved.values():
            make_mesh_for(config)
    pilot = None
    if forecast.pilot is not None:
        pilot = budget.read_pilot(forecast.pilot)
        budget.check_edges(costs, pilot=pilot, budgets=grid.flop_budgets)
    names = {cell.name for cell in chosen}
    shown = [cost for cost in costs if cost.name in names]
    report(_describe(shown, workdir=workdir, forecast=forecast, pilot=pilot))
    for trunk in sorted(names.difference(cells)) if cells else ():
        report(f"{trunk} is trained too: cells that were named branch from it")
    if dry_run:
        return []

    def train_cell(cell: SweepCell) -> None:
        """As its command line would, in this process."""
        train(
            configs.load(workdir / cell.name),
            workdir=workdir / cell.name,
            branch_from=workdir / cell.trunk if cell.trunk else None,
            report=lambda line: None,
        )

    with run_folder.exclusive(workdir):
        write_cells(
            sweep_cells,
            {name: configs.to_dict(config) for name, config in resolved.items()},
            workdir=workdir,
            complete=lambda old: configs.to_dict(configs.from_config_dict(old)),
        )
        return chosen_launcher.launch(
            launchers.Launch(
                workdir=workdir,
                jobs=launchers.make_jobs(chosen),
                train_cell=train_cell,
                report=report,
            )
        )


def _check_sections(fields: Mapping[str, Any]) -> None:
    """Raises UserError if a section of a sweep config is missing or unknown."""
    for section in ("base", "grid"):
        if section not in fields:
            raise UserError(f"a sweep config must have the section {section}; add it.")
    for section in fields:
        if section not in _SECTIONS:
            raise UserError(
                f"a section of a sweep config must be one of {', '.join(_SECTIONS)}, "
                f"got {section!r}; remove or rename it."
            )


def _as_listed(cell: Cell, cost: CellCost) -> SweepCell:
    """A cell as sweep.json lists it."""
    return SweepCell(
        name=cell.name,
        num_steps=cell.num_steps,
        new_flops=cost.new_flops,
        trunk=cell.trunk,
        fork_step=cell.fork_step if cell.trunk else None,
    )


def _describe(
    costs: Sequence[CellCost],
    *,
    workdir: Path,
    forecast: ForecastConfig,
    pilot: Pilot | None,
) -> str:
    """The table of cells, with times from the speeds of what has run there."""
    speeds = budget.measured_speeds(workdir)
    seconds = {
        cost.name: budget.predicted_seconds(
            cost, speeds=speeds, flops_per_second=forecast.flops_per_second
        )
        for cost in costs
    }
    return budget.describe(costs, seconds=seconds, forecast=forecast, pilot=pilot)


def _cost_per_sample(fields: Mapping[str, Any]) -> float:
    """Training FLOPs of one sample of a run config."""
    config = configs.from_config_dict(fields)
    return flops_per_sample(config, read_manifest(config))


def _cost_of(cell: Cell, config: Config) -> CellCost:
    """What a cell of a sweep is and adds."""
    per_sample = flops_per_sample(config, read_manifest(config))
    batch_size = config.train.global_batch_size
    samples = cell.num_steps * batch_size
    shared = cell.fork_step * batch_size if cell.trunk else 0
    return CellCost(
        name=cell.name,
        depth=config.model.depth,
        sizes={
            "params": flops.num_params(config.model),
            "params_without_adaln": flops.num_params(config.model, adaln=False),
            "flops": per_sample,
        },
        samples=samples,
        flops=samples * per_sample,
        new_flops=(samples - shared) * per_sample,
        is_point=not cell.is_trunk,
    )


def coordinates(
    config: Config,
    *,
    depths: Sequence[int],
    num_steps: int,
    parameterisation: str,
    out: Path | str,
) -> dict[str, dict[str, float]]:
    """Checks whether training steps move activations alike at every depth.

    Writes `coordinates.json` and `coordinates.png`.

    Args:
      config: the resolved config; its depth is replaced, its peak rate is used.
      depths: of the models; the smallest is the base depth if the config has none.
      num_steps: training steps, on the run's first batch.
      parameterisation: "standard", "mup", or "both" to compare them.
      out: folder to write into; made if missing.

    Returns:
      parameterisation -> activation -> slope of log change over log width.

    Raises:
      UserError: a wrong setting, or a file of somebody else's in the place of the
        result, before anything is computed.
    """
    from rfjax.scaling.transfer import coordinate_figure

    read_manifest(config)
    _check_replaceable(Path(out) / COORDINATES_FILE)
    base_depth = config.optimizer.base_depth or min(depths)
    names = PARAMETERISATIONS if parameterisation == "both" else (parameterisation,)
    optimizers = [
        dataclasses.replace(
            config.optimizer, parameterisation=name, base_depth=base_depth
        )
        for name in names
    ]
    stream = make_stream(config)
    batch = next(stream)
    stream.close()
    points = [
        point
        for optimizer in optimizers
        for point in check_coordinates(
            batch,
            model=config.model,
            optimizer=optimizer,
            formulation=formulations.parse(config.objective),
            shift=config.shift,
            depths=depths,
            num_steps=num_steps,
            seed=config.seed,
        )
    ]
    slopes = fit_slopes(points)
    result = {
        "base_depth": base_depth,
        "learning_rate": config.optimizer.learning_rate,
        "num_steps": num_steps,
        "slopes": slopes,
        "points": [dataclasses.asdict(point) for point in points],
    }
    whole_files.write_json(Path(out) / COORDINATES_FILE, result)
    with whole_files.replacing(Path(out) / "coordinates.png") as partial:
        coordinate_figure.draw_coordinates(points).savefig(partial)
    return slopes


def _check_replaceable(path: Path) -> None:
    """Raises UserError if a file is there that `coordinates` did not write."""
    if not path.exists():
        return
    try:
        is_ours = "slopes" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        is_ours = False
    if not is_ours:
        raise UserError(
            f"out {path.parent} holds a {path.name} that `rfjax coordinates` did not "
            "write; choose another folder."
        )
