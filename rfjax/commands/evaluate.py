# SPDX-License-Identifier: Apache-2.0
"""The validation loss of a checkpoint, and the curves of a run."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from rfjax import checkpoint, checksums, run_folder, whole_files
from rfjax.checksums import digest
from rfjax.commands.flags import FIGURES, JsonFile, RunData, Step
from rfjax.commands.job import (
    abstract_params_on,
    check_agreement,
    load_trained,
    make_evaluators,
    make_reading_mesh,
)
from rfjax.evaluation import validation
from rfjax.evaluation.curves import draw_curves
from rfjax.models import make_model
from rfjax.parallel import agreement, processes
from rfjax.parallel.sharding import MeshLayout
from rfjax.timestep_levels import NUM_LEVELS
from rfjax.value_types import LocalPath, PositiveInt, checked


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The validation losses of a checkpoint.

    Attributes:
      metrics: {"protocol", "step", "val/loss", "val/loss_t0", ..,
        "val/num_samples", "val_ema/loss", ..}, and those of the run's other evaluators.
      picture: file with the run's curves and these losses, if one was drawn.
    """

    metrics: dict[str, Any]
    picture: Path | None

    def __str__(self) -> str:
        metrics = self.metrics
        lines = [
            f"{metrics['protocol']}, step {metrics['step']}, "
            f"{metrics['val/num_samples']:,} examples",
            f"{'t':>5}  {'raw':>8}  {'ema':>8}",
        ]
        for level in range(NUM_LEVELS):
            raw, ema = (metrics[f"{v}/loss_t{level}"] for v in ("val", "val_ema"))
            lines.append(f"{level / NUM_LEVELS:5.3f}  {raw:8.4f}  {ema:8.4f}")
        raw, ema = metrics["val/loss"], metrics["val_ema/loss"]
        lines.append(f" mean  {raw:8.4f}  {ema:8.4f}   (t = 1/8 .. 7/8)")
        for name in validation.subset_names(metrics):
            raw, ema = (metrics[f"{v}/loss_{name}"] for v in ("val", "val_ema"))
            lines.append(f"{'':>5}  {raw:8.4f}  {ema:8.4f}   {name}")
        lines += [
            f"{name}  {value:.4g}"
            for name, value in metrics.items()
            if "/" in name and not name.startswith(("val/", "val_ema/"))
        ]
        no_picture = "not drawn in a folder that is read-only; name a --picture=FILE"
        lines.append(f"curves: {self.picture or no_picture}")
        return "\n".join(lines)


@checked
def evaluate(
    workdir: LocalPath,
    *,
    step: Step = None,
    num_samples: PositiveInt | None = None,
    data: RunData = None,
    json_file: JsonFile = None,
    picture: LocalPath | None = None,
) -> Evaluation:
    """Measures the validation loss `val_v1` of a checkpoint, EMA and raw weights.

    Draws it beside the run's curves. Nothing else is written in the run folder, which
    may be read-only.

    Args:
      workdir: run folder.
      step: checkpoint to read; the newest if absent.
      num_samples: held-out examples; the run's number if absent.
      data: folder of the data set, if it was moved, or is to be another.
      json_file: file to write the losses to.
      picture: file to draw to; figures/loss.png of the run folder if absent.

    Raises:
      MissingFileError: `workdir` is not a run folder, or its data is missing.

    Example:
      rfjax evaluate --workdir=runs/emoji --json=runs/emoji/evaluation.json
    """
    whole_files.check_writable(json_file, field="--json")
    whole_files.check_writable(picture, field="--picture", suffixes=FIGURES)
    if picture is None and os.access(workdir, os.W_OK):
        picture = Path(workdir) / "figures" / "loss.png"
    config = load_trained(workdir, data=data)
    lines = run_folder.read_metrics(Path(workdir))
    if num_samples is not None:
        config = dataclasses.replace(
            config,
            validation=dataclasses.replace(config.validation, num_samples=num_samples),
        )
    check_agreement(config, step=step)
    mesh = make_reading_mesh(config)
    model = make_model(config.model, layout=MeshLayout(mesh))
    evaluators = make_evaluators(config, model=model, mesh=mesh)
    metrics: dict[str, Any] = {}
    with checkpoint.pinned_for_all(workdir, step) as step:
        listed = Path(workdir) / checkpoint.FOLDER / str(step) / checksums.FILE
        content = digest(listed.read_bytes().hex()) if listed.is_file() else None
        agreement.check_same(processes.share({f"checksums of step {step}": content}))
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
    metrics = {"protocol": validation.PROTOCOL, "step": step, **metrics}
    if processes.is_first():
        if picture is not None:
            name = Path(workdir).resolve().name
            title = f"{name}: depth {config.model.depth}, {config.objective}, "
            title += f"step {step:,}"
            draw_curves(lines, metrics, title=title, out=Path(picture))
        if json_file is not None:
            whole_files.write_json(json_file, metrics)
    return Evaluation(metrics, None if picture is None else Path(picture))
