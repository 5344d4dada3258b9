# SPDX-License-Identifier: Apache-2.0
"""The grid of a depth-scaling study: which models are trained for how long.

A schedule of warm-up, constant rate and cooldown lets one run serve many lengths: the
trunk keeps the rate constant, and every length branches off where its cooldown starts.
A branch is, to the bit, the run that training it from scratch would have given; its
first part is only shared. Source: Hagele et al. 2024, arXiv:2405.18392.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from rfjax.errors import UserError
from rfjax.value_types import (
    LargeCount,
    OneOf,
    PositiveFloat,
    PositiveInt,
    ProperFraction,
    Real,
    Seed,
    check_fields,
)

SCHEDULES = ("branched", "independent")
_SET_BY_THE_GRID = {  # field of the base -> what decides it
    "seed": "grid.seeds",
    "model.depth": "grid.depths",
    "train.num_steps": "grid.num_samples or grid.flop_budgets",
    "optimizer.cooldown_steps": "grid.cooldown_fraction",
    "optimizer.base_depth": "grid.reference_depth",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Depths, budgets and seeds, and the rules that turn them into run configs.

    Budgets are data (`num_samples`, the same for all depths) or compute
    (`flop_budgets`, so that each budget compares depths at equal cost: isoFLOP).

    Attributes:
      depths: of the models; one model size per depth.
      num_samples: training samples; rounded to whole steps.
      flop_budgets: training FLOPs, instead of `num_samples`.
      seeds: repetitions of every cell.
      repeated_depths: depths that are also trained with `repeat_seeds`.
      repeat_seeds: further seeds of the repeated depths.
      schedule: "branched" shares one constant-rate trunk per depth and seed;
        "independent" trains each cell from scratch, to the same end.
      cooldown_fraction: last part of a run in which the learning rate falls to zero.
      reference_depth: depth at which the base's learning rate and batch size are used.
      learning_rate_exponent: the rate of depth d is that of the reference times
        (d / reference_depth) ** exponent; -1 follows the width, 0 uses one rate.
        Not used with optimizer.parameterisation = mup, which has its own rules.
      batch_size_exponent: the same for the batch, in whole multiples of
        `batch_size_multiple`.
      batch_size_multiple: a number of examples that the mesh divides.
      learning_rates: peak rates to try at the reference depth; the rule carries each
        to the other depths. The base's own rate if empty.
      parameterisations: values of optimizer.parameterisation to try; the base's own
        if empty.
    """

    depths: tuple[PositiveInt, ...]
    num_samples: tuple[LargeCount, ...] = ()
    flop_budgets: tuple[PositiveFloat, ...] = ()
    seeds: tuple[Seed, ...] = (0,)
    repeated_depths: tuple[PositiveInt, ...] = ()
    repeat_seeds: tuple[Seed, ...] = ()
    schedule: Annotated[str, OneOf(SCHEDULES)] = "branched"
    cooldown_fraction: ProperFraction = 0.2
    reference_depth: PositiveInt = 2
    learning_rate_exponent: Real = -0.5
    batch_size_exponent: Real = 0.0
    batch_size_multiple: PositiveInt = 8
    learning_rates: tuple[PositiveFloat, ...] = ()
    parameterisations: tuple[str, ...] = ()

    def __post_init__(self):
        check_fields(self, section="grid")
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if isinstance(values, tuple) and len(set(values)) < len(values):
                raise UserError(
                    f"grid.{field.name} must hold different values, got "
                    f"{list(values)}; leave out those given twice."
                )
        for field in ("depths", "seeds"):
            if not getattr(self, field):
                raise UserError(f"grid.{field} must hold at least one value, got [].")
        if bool(self.num_samples) == bool(self.flop_budgets):
            raise UserError(
                "a grid must have one of grid.num_samples and grid.flop_budgets, got "
                f"{list(self.num_samples)} and {list(self.flop_budgets)}."
            )
        if unknown := set(self.repeated_depths) - set(self.depths):
            raise UserError(
                f"grid.repeated_depths must be among grid.depths {list(self.depths)}, "
                f"got {sorted(unknown)}."
            )
        if both := set(self.seeds) & set(self.repeat_seeds):
            raise UserError(
                "grid.repeat_seeds must differ from grid.seeds, both hold "
                f"{sorted(both)}."
            )

    def seeds_of(self, depth: int) -> tuple[int, ...]:
        """Seeds that a depth is trained with."""
        repeated = depth in self.repeated_depths
        return self.seeds + (self.repeat_seeds if repeated else ())


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
      name: of its run folder.
      fields: its run config, as a dict.
      trunk: name of the cell whose checkpoints it may start from, if there is one.
      is_trunk: whether it is only there for others to branch from: its end is no
        point of a law.
    """

    name: str
    fields: Mapping[str, Any]
    trunk: str | None = None
    is_trunk: bool = False

    @property
    def num_steps(self) -> int:
        """Optimizer steps, those of the trunk included."""
        return self.fields["train"]["num_steps"]

    @property
    def fork_step(self) -> int:
        """Where the cooldown starts: up to there, trunk and branch are one run."""
        return self.num_steps - self.fields["optimizer"]["cooldown_steps"]


def make_cells(
    base: Mapping[str, Any],
    grid: GridConfig,
    *,
    flops_per_sample: Callable[[Mapping[str, Any]], float],
) -> Sequence[Cell]:
    """All cells, small and short ones first, every trunk before its branches.

    Args:
      base: fields of a run config; depth, length, batch, seed, rate and cooldown are
        set here.
      grid: what to vary.
      flops_per_sample: fields of a run config -> training FLOPs of one sample; used
        for `flop_budgets`.

    Raises:
      UserError: if the base lacks what the grid scales, a budget is too small for a
        depth, or two become the same run.
    """
    _check_base(base, grid)
    cells = []
    for fields, name, seed in _models(base, grid):
        fields["seed"] = seed
        lengths = _lengths(fields, grid, flops_per_sample)
        branches = [
            Cell(
                f"{name}-n{num_steps * fields['train']['global_batch_size']}"
                f"-seed{seed}",
                _with_length(fields, num_steps, grid.cooldown_fraction),
            )
            for num_steps in lengths
        ]
        if grid.schedule == "branched" and len(branches) > 1:
            trunk = _trunk(f"{name}-trunk-seed{seed}", fields, branches)
            cells.append(trunk)
            branches = [dataclasses.replace(b, trunk=trunk.name) for b in branches]
        cells += branches
    return cells


def _check_base(base: Mapping[str, Any], grid: GridConfig) -> None:
    """Raises UserError unless the base sets what the grid scales, and no more."""
    if not isinstance(base, Mapping):
        raise UserError(f"base must be a section of fields, got {base!r}.")
    for section in ("model", "train", "optimizer"):
        if not isinstance(base.get(section), Mapping):
            raise UserError(
                f"base.{section} must be a section of fields, got "
                f"{base.get(section)!r}; add it to the sweep config."
            )
    for name, setter in _SET_BY_THE_GRID.items():
        section, _, field = name.rpartition(".")
        given = base[section] if section else base
        if field in given:
            raise UserError(
                f"base.{name} must be left out, since {setter} sets it, got "
                f"{given[field]!r}; set {setter} instead."
            )
    needed = [("train", "global_batch_size")]
    own = base["optimizer"].get("parameterisation", "standard")
    if "standard" in (grid.parameterisations or (own,)) and not grid.learning_rates:
        needed.append(("optimizer", "learning_rate"))
    for section, field in needed:
        value = base[section].get(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise UserError(
                f"base.{section}.{field} must be a positive number, which the grid "
                f"scales with depth, got {value!r}; set it in the sweep config."
            )


def _models(
    base: Mapping[str, Any], grid: GridConfig
) -> Iterator[tuple[dict, str, int]]:
    """(fields, name, seed) of everything that is trained, lengths left open."""
    for depth in sorted(grid.depths):
        scale = depth / grid.reference_depth
        for parameterisation in grid.parameterisations or (None,):
            for rate in grid.learning_rates or (None,):
                for seed in grid.seeds_of(depth):
                    fields, name = copy.deepcopy(dict(base)), f"d{depth:02d}"
                    fields["model"]["depth"] = depth
                    optimizer, train = fields["optimizer"], fields["train"]
                    if parameterisation is not None:
                        optimizer["parameterisation"] = parameterisation
                        name += f"-{parameterisation}"
                    if rate is not None:
                        optimizer["learning_rate"] = rate
                        name += f"-lr{rate:g}"
                    if optimizer.get("parameterisation") == "mup":
                        # It has its own rules for rates over depth.
                        optimizer["base_depth"] = grid.reference_depth
                    else:
                        rule = scale**grid.learning_rate_exponent
                        optimizer["learning_rate"] *= rule
                    multiple = grid.batch_size_multiple
                    batch = train["global_batch_size"]
                    if grid.batch_size_exponent:
                        batch *= scale**grid.batch_size_exponent / multiple
                        batch = max(1, round(batch)) * multiple
                    train["global_batch_size"] = batch
                    yield fields, name, seed


def _lengths(
    fields: Mapping[str, Any],
    grid: GridConfig,
    flops_per_sample: Callable[[Mapping[str, Any]], float],
) -> list[int]:
    """Numbers of steps of one model, shortest first."""
    batch = fields["train"]["global_batch_size"]
    budgets = grid.num_samples
    if grid.flop_budgets:
        cost = flops_per_sample(fields)
        budgets = [flops / cost for flops in grid.flop_budgets]
    lengths = [round(budget / batch) for budget in sorted(budgets)]
    if lengths[0] < 1 or len(set(lengths)) < len(lengths):
        raise UserError(
            f"every budget must give depth {fields['model']['depth']} a different "
            f"number of steps, at least 1, got {lengths} with batches of {batch}; "
            "raise the budgets, space them wider or lower train.global_batch_size."
        )
    return lengths


def _with_length(
    fields: Mapping[str, Any], num_steps: int, cooldown_fraction: float
) -> dict[str, Any]:
    fields = copy.deepcopy(dict(fields))
    fields["train"]["num_steps"] = num_steps
    fields["optimizer"]["cooldown_steps"] = round(cooldown_fraction * num_steps)
    return fields


def _trunk(name: str, fields: Mapping[str, Any], branches: Sequence[Cell]) -> Cell:
    """The constant-rate run that keeps a checkpoint where each branch leaves it."""
    forks = sorted({branch.fork_step for branch in branches})
    fields = _with_length(fields, forks[-1], 0.0)
    fields["checkpoint"] = dict(fields.get("checkpoint", {}), keep_steps=forks)
    return Cell(name, fields, is_trunk=True)
