# SPDX-License-Identifier: Apache-2.0
"""Which device holds what of a config's train state."""

from __future__ import annotations

import functools
from pathlib import Path

import jax

from rfjax import whole_files
from rfjax.config import Config
from rfjax.errors import UserError
from rfjax.models.mmdit import Network
from rfjax.parallel import layout as layouts
from rfjax.parallel import mesh as meshes
from rfjax.plan.topology import parse_topology
from rfjax.train.optimizer import make_optimizer
from rfjax.train.state import init_state


def layout(
    config: Config,
    *,
    num_devices: int | None = None,
    topology: str | None = None,
    json: Path | str | None = None,
    picture: Path | str | None = None,
) -> layouts.StateLayout:
    """Who holds what of a config's train state; no device is needed.

    Args:
      config: the resolved config.
      num_devices: of the mesh; or give the topology. By default those that are there.
      topology: chips, as v5p:4x4x4, v5litepod-256 or 2*v5e:16x16.
      json: file to write the figures to.
      picture: file to draw the bytes of each parameter into.

    Raises:
      UserError: the mesh fits neither the devices nor the model.
    """
    if num_devices is not None and topology is not None:
        raise UserError("give either --devices or --topology, not both.")
    if num_devices is not None and num_devices < 1:
        raise UserError(f"--devices must be at least 1, got {num_devices}.")
    if topology is not None:
        chips = parse_topology(topology)
        num_devices = chips.num_devices
        meshes.check_slices(config.mesh.slice, chips.num_slices)
    sizes = config.mesh.resolve(num_devices or jax.device_count())
    network = Network(config.model)
    described = layouts.lay_out(
        network.abstract_params(),
        jax.eval_shape(
            functools.partial(
                init_state,
                init_params=network.init,
                optimizer=make_optimizer(config.optimizer, depth=config.model.depth),
            ),
            jax.random.key(config.seed),
        ),
        mesh=sizes,
    )
    if json is not None:
        whole_files.write_json(json, described.to_json())
    if picture is not None:
        layouts.draw(described, picture)
    return described
