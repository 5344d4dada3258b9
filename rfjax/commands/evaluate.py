# SPDX-License-Identifier: Apache-2.0
"""The validation loss of a checkpoint, and the curves of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rfjax import checkpoint, run_folder
from rfjax import config as configs
from rfjax.commands.job import make_validation, with_sharding
from rfjax.evaluation import validation
from rfjax.evaluation.curves import draw_curves
from rfjax.models.mmdit import Network
from rfjax.parallel import mesh as meshes


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
    # Any devices will do: the number does not depend on them.
    mesh = meshes.make_mesh(meshes.MeshConfig())
    network = Network(config.model)
    validate = make_validation(config, network=network, mesh=mesh)
    metrics: dict[str, Any] = {"protocol": validation.PROTOCOL, "step": step}
    for prefix, weights in (("val", "raw"), ("val_ema", "ema")):
        params = checkpoint.restore_params(
            workdir,
            with_sharding(network.abstract_params(), meshes.replicated(mesh)),
            weights=weights,
            step=step,
            check=weights == "raw",  # the first of the two
        )
        metrics |= {f"{prefix}/{k}": v for k, v in validate(params).items()}
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
