# SPDX-License-Identifier: Apache-2.0
"""Refuses what no device of this machine can hold, before it is compiled or drawn.

Only what is certain counts: the train state and one batch. What else a step needs the
compiler finds out, and `rfjax plan` says beforehand.
"""

from __future__ import annotations

import math
import os

import jax
from jax.sharding import Mesh

from rfjax.config import Config
from rfjax.errors import UserError, format_bytes
from rfjax.models import make_model
from rfjax.parallel.layout import lay_out
from rfjax.parallel.mesh import MeshConfig, num_batch_shards

_COPIES = 4  # of the parameters in a train state: EMA, and AdamW's two moments


def check_memory(config: Config, *, mesh: Mesh) -> None:
    """Raises UserError if the train state or a batch cannot fit into the memory.

    Args:
      config: of the run.
      mesh: that it trains on.
    """
    available = _bytes_per_device(mesh)
    model = make_model(config.model)
    params = model.abstract_params()
    sizes = MeshConfig(**mesh.shape)
    layout = lay_out(params, params, dims=model.dims, mesh=sizes)
    needed = _COPIES * layout.parameter_bytes
    if needed > available:
        raise UserError(
            f"model.depth must leave room for the train state, got {config.model.depth}"
            f": {format_bytes(needed)} on each device, which has "
            f"{format_bytes(available)}; make the model smaller, or mesh.fsdp larger."
        )
    manifest = config.data.manifest()
    batch_size = config.train.global_batch_size
    numbers = (
        max(map(math.prod, manifest.latent.shapes))
        + math.prod(manifest.context_shape)
        + manifest.pooled_dim
    )
    needed = 4 * numbers * batch_size // num_batch_shards(mesh)
    if needed > available:
        raise UserError(
            f"train.global_batch_size must leave room for a batch, got {batch_size}: "
            f"{format_bytes(needed)} on each device, which has "
            f"{format_bytes(available)}; make the batch smaller."
        )


def _bytes_per_device(mesh: Mesh) -> int:
    """Memory of a device; simulated ones share that of the machine."""
    device = mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is not None:
        return limit
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return host // jax.local_device_count()
