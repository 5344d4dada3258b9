# SPDX-License-Identifier: Apache-2.0
"""Which device holds what of a config's train state."""

from __future__ import annotations

from typing import Annotated

import jax
from cyclopts import Parameter

from rfjax import whole_files
from rfjax.commands.flags import FIGURES, JsonFile, Report, RunConfig
from rfjax.commands.job import make_init_state
from rfjax.errors import UserError
from rfjax.models import make_model
from rfjax.parallel.layout import StateLayout, draw, lay_out
from rfjax.parallel.mesh import check_slices
from rfjax.plan.topology import parse_topology
from rfjax.value_types import LocalPath, PositiveInt, Text, checked


@checked
def layout(
    config: RunConfig,
    *,
    num_devices: Annotated[PositiveInt | None, Parameter(name="--devices")] = None,
    topology: Text | None = None,
    json_file: JsonFile = None,
    picture: LocalPath | None = None,
    report: Report = lambda line: None,
) -> StateLayout:
    """Shows which device holds which parameter on a mesh, and why.

    No device is needed.

    Args:
      config: the resolved config.
      num_devices: devices of the mesh; those of this machine if absent.
      topology: chips instead, as v5p:4x4x4, v5litepod-256 or 2*v5e:16x16.
      json_file: file to write the figures to.
      picture: file to draw the bytes of each parameter into, as layout.png.
      report: receives where the picture is.

    Raises:
      UserError: the mesh fits neither the devices nor the model.

    Example:
      rfjax layout --config=configs/sd3.py:24 --topology=v5e:16x16 --picture=layout.png
    """
    whole_files.check_writable(json_file, field="--json")
    whole_files.check_writable(picture, field="--picture", suffixes=FIGURES)
    if num_devices is not None and topology is not None:
        raise UserError("give either --devices or --topology, not both.")
    if topology is not None:
        chips = parse_topology(topology)
        num_devices = chips.num_devices
        check_slices(config.mesh.slice, chips.num_slices)
    sizes = config.mesh.resolve(num_devices or jax.device_count())
    model = make_model(config.model)
    state = jax.eval_shape(make_init_state(config, model=model), jax.random.key(0))
    described = lay_out(model.abstract_params(), state, dims=model.dims, mesh=sizes)
    if json_file is not None:
        whole_files.write_json(json_file, described.to_json())
    if picture is not None:
        draw(described, picture)
        report(f"picture: {picture}")
    return described
