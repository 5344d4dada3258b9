# SPDX-License-Identifier: Apache-2.0
"""One frozen tree of all sections' configs, validated once.

`configs/NAME.py` returns a ConfigDict; `from_config_dict` turns it into a `Config` and
checks every field and every rule between sections, before anything is compiled or
written. Each section is described beside the code that reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rfjax import __version__, input_paths, schema, whole_files
from rfjax.checkpoint import CheckpointConfig
from rfjax.data import DATASETS, Dataset
from rfjax.errors import MissingFileError, UserError
from rfjax.evaluation import EVALUATORS, EvaluatorConfig
from rfjax.evaluation.sample import SampleConfig
from rfjax.evaluation.validation import ValidationConfig
from rfjax.flow import formulations
from rfjax.models import BACKBONES, DEFAULT_KIND, BackboneConfig
from rfjax.parallel.mesh import MeshConfig
from rfjax.run_folder import CONFIG_FILE
from rfjax.train.ema import EmaConfig
from rfjax.train.loop import TrainConfig
from rfjax.train.metric_writers import METRIC_WRITERS, MetricWriterConfig
from rfjax.train.optimizer import OptimizerConfig
from rfjax.value_types import PositiveFloat, Seed, check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run.

    Attributes:
      seed: of parameters, data order, dropout, timesteps and noise.
      objective: a formulation by the name the paper prints, e.g. rf/lognorm(0.00,1.00).
      shift: resolution shift of the timesteps in training; 3 at 1024 px.
      model: the backbone: its kind, shape and numerics.
      data: which examples, and how they are read.
      mesh: sizes of the mesh axes.
      optimizer: AdamW and its schedule.
      ema: moving average of the parameters.
      train: length and size of the run.
      checkpoint: when to save and what to keep.
      validation: when to validate and on how much.
      evaluators: what else is measured in training, beside the validation loss.
      sample: how pictures are drawn.
      metric_writers: where metrics go, beside metrics.jsonl.
    """

    seed: Seed = 0
    objective: str = "rf/lognorm(0.00,1.00)"
    shift: PositiveFloat = 1.0
    model: BackboneConfig = schema.one_of(
        BACKBONES, default=DEFAULT_KIND, required=True
    )
    data: Dataset = schema.one_of(DATASETS)
    mesh: MeshConfig = schema.changeable(MeshConfig())
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = schema.changeable(CheckpointConfig())
    validation: ValidationConfig = schema.changeable(ValidationConfig())
    evaluators: tuple[EvaluatorConfig, ...] = schema.many_of(
        EVALUATORS, changeable=True
    )
    sample: SampleConfig = schema.changeable(SampleConfig())
    metric_writers: tuple[MetricWriterConfig, ...] = schema.many_of(
        METRIC_WRITERS, default=("tensorboard",), changeable=True
    )

    def __post_init__(self):
        check_fields(self)
        self.sample.grid_for(formulations.parse(self.objective))
        self.optimizer.check_steps(self.train.num_steps)
        if self.mesh.tensor > 1 and self.model.num_heads % self.mesh.tensor:
            raise UserError(
                "mesh.tensor must divide the number of heads, "
                f"{self.model.num_heads}, got {self.mesh.tensor}; choose a divisor."
            )


def from_config_dict(values: Mapping[str, Any]) -> Config:
    """Builds and checks a Config from a ConfigDict, or a dict read from config.json.

    Raises:
      UserError: unknown or missing fields, wrong types, values out of range, or
        sections that contradict each other.
    """
    if hasattr(values, "to_dict"):
        values = values.to_dict()
    return schema.build(Config, values)


def config_to_dict(
    config: Config, *, folder: Path | str | None = None
) -> dict[str, Any]:
    """The resolved config as plain values, as config.json holds it.

    Args:
      config: to write.
      folder: of the config.json, at which relative paths then start; by default they
        start at the current folder.
    """
    values = schema.to_dict(config)
    return values if folder is None else input_paths.to_folder(Config, values, folder)


def load_config(workdir: Path | str) -> Config:
    """The config of a run folder.

    Raises:
      MissingFileError: if the folder holds no run.
      UserError: its config.json is not the config of a run of this version.
    """
    path = Path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise MissingFileError(
            f"--workdir={workdir} holds no {CONFIG_FILE}, so it is not a run folder; "
            "train one with `rfjax train --config=... --workdir=...`."
        )
    fields = input_paths.from_folder(Config, whole_files.read_json(path), path.parent)
    try:
        return from_config_dict(fields)
    except UserError as error:
        raise UserError(
            f"{path} must be the config of a run of rfjax {__version__}: {error} "
            "Restore it from a copy, or read the run with the version that wrote it."
        ) from error
