# SPDX-License-Identifier: Apache-2.0
"""Trains the cells of a depth study."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from rfjax import run_folder, schema
from rfjax.commands.flags import Report, SweepFields, Warn
from rfjax.commands.job import (
    flops_per_sample,
    make_mesh_for,
    read_manifest,
)
from rfjax.commands.memory import check_memory
from rfjax.commands.train import train
from rfjax.config import Config, config_to_dict, from_config_dict, load_config
from rfjax.config_files import SweepConfig
from rfjax.errors import UserError
from rfjax.models import make_model
from rfjax.scaling.study import budget
from rfjax.scaling.study.budget import CellCost, ForecastConfig, Pilot
from rfjax.scaling.study.grid import Cell, GridConfig, make_cells
from rfjax.scaling.study.launchers import LAUNCHERS, Launch, Launcher, make_jobs
from rfjax.scaling.study.manifest import SweepCell
from rfjax.scaling.study.sweep import choose_cells, write_cells
from rfjax.value_types import LocalPath, OneOf, Text, checked

Cells = Annotated[
    Sequence[Text],
    Parameter(
        name="--cells",
        converter=lambda _, tokens: tuple(
            name for token in tokens for name in token.value.split(",")
        ),
        n_tokens=1,
        metavar="NAME,NAME",
    ),
]


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
        return ""  # each failure was reported when it came


@checked
def sweep(
    fields: SweepFields,
    *,
    workdir: LocalPath,
    dry_run: bool = False,
    launcher: Annotated[str, OneOf(LAUNCHERS)] | None = None,
    cells: Cells = (),
    report: Report = lambda line: None,
    warn: Warn = None,
) -> Swept:
    """Writes the cells of a depth study to files, and trains or resumes them.

    Args:
      fields: {"base": fields of a run config, "grid": fields of `GridConfig`}, and,
        may be left out, {"forecast": fields of `ForecastConfig`, "launcher": its kind
        and fields}.
      workdir: sweep folder; holds `sweep.json`, one run folder per cell, `runs.csv`.
      dry_run: print the table of cells with their cost and stop.
      launcher: who trains them; local: this process, one cell after the other. The
        kind of the config's section `launcher` if absent.
      cells: names of the only cells to train now, with the trunks that they branch
        from; all of them if empty. The files of the others are written all the same.
      report: receives the table and a line for each event.
      warn: receives a line for each failure; `report` if absent.

    Raises:
      Stopped: a signal asked to stop; the current cell is saved.
      UserError: if the grid or any cell's config is wrong, a cell was started with
        another config, or by the pilot's law an optimum would lie on the edge of the
        grid; nothing was written or trained then.

    Example:
      rfjax sweep --config=configs/sweeps/emoji_depth.py --workdir=runs/depth --dry-run
    """
    _check_sections(fields)
    workdir = Path(workdir)
    chosen_launcher = _choose_launcher(launcher, fields.get("launcher", {}))
    grid = schema.build(GridConfig, fields["grid"], prefix="grid.")
    forecast = schema.build(
        ForecastConfig, fields.get("forecast", {}), prefix="forecast."
    )
    grid_cells = make_cells(fields["base"], grid, flops_per_sample=_cost_per_sample)
    resolved = {c.name: from_config_dict(c.fields) for c in grid_cells}
    costs = [_cost_of(cell, resolved[cell.name]) for cell in grid_cells]
    sweep_cells = [
        _as_listed(cell, cost) for cell, cost in zip(grid_cells, costs, strict=True)
    ]
    chosen = choose_cells(sweep_cells, cells)
    _check_cells(resolved.values(), launcher=chosen_launcher)
    pilot = budget.read_pilot(forecast.pilot) if forecast.pilot is not None else None
    if pilot is not None:
        budget.check_edges(costs, pilot=pilot, budgets=grid.flop_budgets)
    names = {cell.name for cell in chosen}
    shown = [cost for cost in costs if cost.name in names]
    report(_describe(shown, workdir=workdir, forecast=forecast, pilot=pilot))
    for trunk in sorted(names.difference(cells)) if cells else ():
        report(f"{trunk} is trained too: cells that were named branch from it")
    if dry_run:
        return Swept()

    with run_folder.exclusive(workdir):
        write_cells(
            sweep_cells,
            _as_stored(resolved, workdir),
            workdir=workdir,
            complete=_with_newer_fields,
            may_change=_changeable_fields,
        )
        failed = chosen_launcher.launch(
            Launch(
                workdir=workdir,
                jobs=make_jobs(chosen),
                train_cell=functools.partial(_train_cell, workdir),
                report=report,
                warn=warn,
            )
        )
    if failed:
        (warn or report)(
            f"failed: {', '.join(failed)}; mend the reasons given above and run the "
            "same command again"
        )
    return Swept(failed)


def _train_cell(workdir: Path, cell: SweepCell) -> None:
    """Trains a cell as its command line would, in this process."""
    train(
        load_config(workdir / cell.name),
        workdir=workdir / cell.name,
        branch_from=workdir / cell.trunk if cell.trunk else None,
        report=lambda line: None,
    )


def _check_cells(configs: Iterable[Config], *, launcher: Launcher) -> None:
    """Raises UserError if a cell could not be trained."""
    for config in configs:
        config.ema.check_steps(config.train.num_steps)
        if launcher.runs_here:
            check_memory(config, mesh=make_mesh_for(config))


def _check_sections(fields: Mapping[str, Any]) -> None:
    """Raises UserError if a section of a sweep config is missing or unknown."""
    for section in ("base", "grid"):
        if section not in fields:
            raise UserError(f"a sweep config must have the section {section}; add it.")
    known = {field.name: field for field in dataclasses.fields(SweepConfig)}
    for section in fields:
        if section not in known:
            raise UserError(schema.unknown_field(section, "", known))


def _choose_launcher(kind: str | None, section: Mapping[str, Any]) -> Launcher:
    """The launcher of a kind; the section's fields are those of the kind it names."""
    if kind is not None and isinstance(section, Mapping):
        if kind != section.get("kind", "local"):
            section = {"kind": kind}
    return schema.build_kind(LAUNCHERS, section, name="launcher", default="local")


def _as_listed(cell: Cell, cost: CellCost) -> SweepCell:
    """A cell as sweep.json lists it."""
    return SweepCell(
        name=cell.name,
        num_steps=cell.num_steps,
        new_flops=cost.new_flops,
        trunk=cell.trunk,
        fork_step=cell.fork_step if cell.trunk else None,
        depth=cost.depth,
    )


def _as_stored(configs: Mapping[str, Config], workdir: Path) -> dict[str, Any]:
    """The configs of cells, each as the config.json of its run folder holds it."""
    return {
        name: config_to_dict(config, folder=workdir / name)
        for name, config in configs.items()
    }


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


def _with_newer_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the fields that are newer than it, at their defaults."""
    return config_to_dict(from_config_dict(fields))


def _changeable_fields(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the fields of a config.json that may differ when the run resumes."""
    return schema.changeable_fields(from_config_dict(fields))


def _cost_per_sample(fields: Mapping[str, Any]) -> float:
    """Training FLOPs of one sample of a run config."""
    config = from_config_dict(fields)
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
