# SPDX-License-Identifier: Apache-2.0
"""The device mesh and the way host arrays get onto it.

Mesh axes: `data` replicates parameters and splits the batch, `fsdp` splits both
parameters and batch, `tensor` splits heads and MLP width inside a layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Size of each mesh axis; at most one may be -1, to be inferred.

    Attributes:
      data: copies of the model, each with its share of the batch.
      fsdp: shards of parameters, optimizer state and batch.
      tensor: shards of heads and MLP width.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        for axis, size in dataclasses.asdict(self).items():
            if size < 1 and size != -1:
                raise ValueError(
                    f"mesh.{axis} must be at least 1, or -1 to infer it, got {size}."
                )
        if list(dataclasses.asdict(self).values()).count(-1) > 1:
            raise ValueError(
                f"mesh may leave one axis at -1, got {self.describe()}; "
                "give the others a size."
            )

    def describe(self) -> str:
        """The sizes in words, as errors print them."""
        return " ".join(f"{axis}={n}" for axis, n in dataclasses.asdict(self).items())

    def resolve(self, num_devices: int) -> MeshConfig:
        """Infers the axis left at -1.

        Raises:
          ValueError: if the axes do not multiply to the number of devices.
        """
        sizes = dataclasses.asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        inferred = {
            axis: num_devices // fixed if size == -1 else size
            for axis, size in sizes.items()
        }
        if math.prod(inferred.values()) != num_devices:
            raise ValueError(
                f"mesh {self.describe()} needs a multiple of {fixed} devices, "
                f"{num_devices} are visible; set one axis to -1 to infer it."
                if -1 in sizes.values()
                else f"mesh {self.describe()} needs {fixed} devices, {num_devices} are "
                "visible; set one axis to -1 to infer it."
            )
        return MeshConfig(**inferred)

    def check_batch(self, global_batch_size: int, *, micro_batches: int) -> None:
        """Raises ValueError if the resolved mesh cannot split the batch evenly."""
        shards = self.data * self.fsdp * micro_batches
        if global_batch_size % shards:
            raise ValueError(
                "train.global_batch_size must be a multiple of mesh.data * mesh.fsdp * "
                f"train.micro_batches = {self.data} * {self.fsdp} * {micro_batches}, "
                f"got {global_batch_size}; the nearest that fits is "
                f"{max(1, round(global_batch_size / shards)) * shards}."
            )


def make_mesh(config: MeshConfig, *, devices: Sequence[jax.Device] = ()) -> Mesh:
    """Arranges the devices (all visible ones by default) as the config says.

    Raises:
      ValueError: if the axes do not multiply to the number of devices.
    """
    devices = list(devices) or jax.devices()
    axes = dataclasses.asdict(config.resolve(len(devices)))
    return jax.make_mesh(
        tuple(axes.values()),
        tuple(axes),
        # Auto: the compiler propagates shardings from parameters and batch.
        axis_types=(AxisType.Auto,) * len(axes),
        devices=devices,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading dim over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch, *, mesh: Mesh):
    """Joins each process's rows of a batch into global arrays on the mesh.

    Args:
      batch: pytree of host arrays [B / num_processes, ...].
      mesh: the mesh; its batch axes must divide B.

    Returns:
      The same pytree of jax.Arrays [B, ...], split over `data` and `fsdp`.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)),
        batch,
    )
