# SPDX-License-Identifier: Apache-2.0
"""A run folder made of PyTorch weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
from cyclopts import Parameter

from rfjax import checkpoint, checksums, run_folder, whole_files
from rfjax.checkpoint import LazyArray
from rfjax.commands.flags import RunFields, TorchLayout
from rfjax.commands.job import (
    describe_run,
    make_mesh_for,
    make_stream,
    read_manifest,
)
from rfjax.commands.memory import check_memory
from rfjax.config import Config, config_to_dict, from_config_dict
from rfjax.errors import UserError
from rfjax.export import scheduler
from rfjax.export.load import (
    Weights,
    merge_model_fields,
    merge_sample_fields,
    open_weights,
)
from rfjax.models import DEFAULT_KIND, make_model
from rfjax.parallel.sharding import parameter_path
from rfjax.train.optimizer import make_optimizer
from rfjax.train.state import TrainState, init_state
from rfjax.value_types import LocalPath, checked


@dataclasses.dataclass(frozen=True)
class Imported:
    """A run folder that `import_weights` made.

    Attributes:
      config: the resolved config of the run.
      workdir: the folder.
      warnings: what of the weights' scheduler the run does not follow.
    """

    config: Config
    workdir: Path
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"imported a model of depth {self.config.model.depth} into {self.workdir}",
            f"resume: rfjax train --config={self.workdir}/config.json "
            f"--workdir={self.workdir}",
            *(f"warning: {text}" for text in self.warnings),
        ]
        return "\n".join(lines)


@checked
def import_weights(
    source: Annotated[LocalPath, Parameter(name="--from")],
    *,
    fields: RunFields,
    workdir: LocalPath,
    layout: TorchLayout = "diffusers",
) -> Imported:
    """Makes a run folder from PyTorch weights, to train further, evaluate and sample.

    The run starts at step 0 with a fresh optimizer; the weights become both its
    parameters and their moving average.

    Args:
      source: safetensors file, or folder with one.
      fields: of a run config; what its model section leaves out the weights decide.
      workdir: run folder to make; must be new or empty, and appears only when
        complete.
      layout: of the weights, diffusers or sd3.

    Raises:
      UserError: weights, config and data do not fit together.
      MissingFileError: the weights or the data are missing.

    Example:
      rfjax import --from=export/emoji --config=configs/emoji.py --workdir=runs/imported
    """
    workdir = Path(workdir)
    whole_files.check_free(workdir, field="workdir")
    sections = {name: fields.get(name, {}) for name in ("model", "sample")}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise UserError(f"{name} must be a section of fields, got {section!r}.")
    kind = sections["model"].get("kind", DEFAULT_KIND)
    weights = open_weights(source, layout=layout, kind=kind)
    model_fields = merge_model_fields(
        weights,
        sections["model"],
        position_file=workdir / run_folder.POSITION_FILE,
    )
    sample_fields = merge_sample_fields(weights, sections["sample"])
    config = from_config_dict(
        {**fields, "model": model_fields, "sample": sample_fields}
    )
    manifest = read_manifest(config)
    check_memory(config, mesh=make_mesh_for(config))
    checkpoint.check_folder(workdir, last_step=0)
    with whole_files.new_folder(workdir) as folder:
        run_folder.claim(folder, config_to_dict(config, folder=workdir))
        describe_run(folder, config, manifest)
        run_folder.update_run(
            folder,
            imported_from=str(source),
            imported_configs=weights.configs,
            status="imported",
            saved_step=0,
        )
        if weights.positions is not None:
            positions = folder / run_folder.POSITION_FILE
            np.save(positions, weights.positions)
            checksums.write(folder, checksums.compute(folder, [positions]))
        state = _imported_state(config, weights)
        checkpoints = checkpoint.Checkpoints(folder, config=config.checkpoint)
        checkpoints.save(0, state, data_position=make_stream(config).get_state())
        checkpoints.close()
    return Imported(config, workdir, _scheduler_warnings(weights, config))


def _scheduler_warnings(weights: Weights, config: Config) -> tuple[str, ...]:
    """How pictures of the run will differ from those of the weights' pipeline."""
    content = weights.configs.get("scheduler", {})
    sample = config_to_dict(config)["sample"]
    others = [
        f"sample.{name} is {sample[name]!r}, the weights' scheduler says {value!r}"
        for name, value in scheduler.sample_fields(content).items()
        if sample[name] != value
    ]
    lacking = scheduler.not_followed(content)
    if lacking:
        others.append(
            f"scheduler_config.json has {', '.join(lacking)}, which only PyTorch "
            "follows; export writes it back"
        )
    return tuple(f"{text}." for text in others)


def _imported_state(config: Config, weights: Weights) -> TrainState:
    """A fresh state around imported weights, as arrays that are read when written."""
    model = make_model(config.model)
    abstract = jax.eval_shape(
        functools.partial(
            init_state,
            init_params=lambda params: params,
            optimizer=make_optimizer(config.optimizer, model=model),
        ),
        model.abstract_params(),
    )

    def zeros(leaf: jax.ShapeDtypeStruct) -> LazyArray:
        """What an optimizer that has seen no step remembers."""
        return LazyArray(
            leaf.shape, leaf.dtype, lambda: np.zeros(leaf.shape, leaf.dtype)
        )

    def read(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> LazyArray:
        """A parameter."""
        name = parameter_path(path)
        return LazyArray(leaf.shape, leaf.dtype, lambda: weights.read_leaf(name))

    params = jax.tree_util.tree_map_with_path(read, abstract.params)
    return dataclasses.replace(
        jax.tree.map(zeros, abstract), params=params, ema_params=params
    )
