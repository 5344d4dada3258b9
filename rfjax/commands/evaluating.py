# SPDX-License-Identifier: Apache-2.0
"""The validation loss of a checkpoint, and the curves of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rfjax import checkpoint, run_folder
from rfjax import config as configs
from rfjax.commands.job import (
    abstract_params_on,
    make_evaluators,
    make_reading_mesh,
)
from rfjax.evaluation import validation
from rfjax.evaluation.curves import draw_curves
from rfjax.models import make_model
from rfjax.parallel.sharding import MeshLayout


def evaluate(
    workdir: Path | str, *, step: int | None = None, num_samples: int | None = None
) -> dict[str, Any]:
    """Validation loss (`val_v1`) of a checkpoint, EMA and raw weights.

    Args:
      workdir: run folder.
      step: which checkpoint; the newest by default.
      num_samples: held-out examples; by default as many as the config says.

    Returns:
      {"protocol", "step", "val/loss", "val/loss_t0", .., "val_ema/loss", ..}.
    """
    config = configs.load(workdir)
    step = checkpoint.choose_step(workdir, step)
    if num_samples is not None:
        config = dataclasses.replace(
            config,
            validation=dataclasses.replace(config.validation, num_samples=num_samples),
        )
    mesh = make_reading_mesh(config)
    model = make_model(config.model, layout=MeshLayout(mesh))
    evaluators = make_evaluators(config, model=model, mesh=mesh)
    metrics: dict[str, Any] = {"protocol": validation.PROTOCOL, "step": step}
    for suffix, weights in (("", "raw"), ("_ema", "ema")):
        params = checkpoint.restore_params(
            workdir,
            abstract_params_on(model, mesh=mesh),
            weights=weights,
            step=step,
            check=weights == "raw",  # the first of the two
        )
        metrics |= {
            f"{evaluator.name}{suffix}/{name}": value
            for evaluator in evaluators
            for name, value in evaluator(params).items()
        }
    return metrics


def draw_run(workdir: Path | str, evaluation: Mapping[str, Any]) -> Path:
    """Draws the run's losses and one evaluation into its `figures/loss.png`."""
    config = configs.load(workdir)
    out = Path(workdir) / "figures" / "loss.png"
    draw_curves(
        run_folder.read_metrics(Path(workdir)),
        evaluation,
        title=f"{Path(workdir).resolve().name}: depth {config.model.depth}, "
        f"{config.objective}, step {evaluation['step']:,}",
        out=out,
    )
    return out
