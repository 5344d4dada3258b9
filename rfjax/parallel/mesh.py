# SPDX-License-Identifier: Apache-2.0
"""The device mesh and the way host arrays get onto it.

Mesh axes, from the slowest network to the fastest: `slice` and `data` replicate
parameters and split the batch, `slice` over the data-centre network between the slices
of a multislice job; `fsdp` splits both parameters and batch; `tensor` splits heads and
MLP width inside a layer; `sequence` splits the image tokens of an example.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rfjax.errors import UserError
from rfjax.value_types import Bounds, check_fields

BATCH_AXES = ("slice", "data", "fsdp")
AxisSize = Annotated[
    int, Bounds(1, besides=(-1, "to infer it")), Bounds(high=2**20, remedy="infer it")
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Size of each mesh axis; at most one may be -1, to be inferred.

    Attributes:
      slice: slices of a multislice TPU job, each with a copy of the model; else 1.
      data: copies of the model per slice, each with its share of the batch.
      fsdp: shards of parameters, optimizer state and batch.
      tensor: shards of heads and MLP width.
      sequence: shards of the image tokens of each example.
    """

    slice: AxisSize = 1
    data: AxisSize = -1
    fsdp: AxisSize = 1
    tensor: AxisSize = 1
    sequence: AxisSize = 1

    def __post_init__(self):
        check_fields(self, section="mesh")
        if list(dataclasses.asdict(self).values()).count(-1) > 1:
            raise UserError(
                f"mesh may leave one axis at -1, got {self.describe()}; "
                "give the others a size."
            )

    def describe(self) -> str:
        """The sizes as errors print them, e.g. "slice=1 data=-1"."""
        return " ".join(f"{axis}={n}" for axis, n in dataclasses.asdict(self).items())

    def resolve(self, num_devices: int) -> MeshConfig:
        """Infers the axis left at -1.

        Raises:
          UserError: if the axes do not multiply to the number of devices.

        Example:
          >>> MeshConfig(fsdp=4).resolve(8)
          MeshConfig(slice=1, data=2, fsdp=4, tensor=1, sequence=1)
        """
        sizes = dataclasses.asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        inferred = {
            axis: num_devices // fixed if size == -1 else size
            for axis, size in sizes.items()
        }
        if math.prod(inferred.values()) != num_devices:
            raise UserError(
                f"mesh {self.describe()} needs a multiple of {fixed} devices, "
                f"{num_devices} are visible; set one axis to -1 to infer it."
                if -1 in sizes.values()
                else f"mesh {self.describe()} needs {fixed} devices, {num_devices} are "
                "visible; set one axis to -1 to infer it."
            )
        return MeshConfig(**inferred)

    def check_batch(self, global_batch_size: int, *, micro_batches: int) -> None:
        """Raises UserError if the resolved mesh cannot split the batch evenly."""
        sizes = [getattr(self, axis) for axis in BATCH_AXES] + [micro_batches]
        shards = math.prod(sizes)
        if global_batch_size % shards:
            raise UserError(
                "train.global_batch_size must be a multiple of "
                f"{' * '.join(f'mesh.{axis}' for axis in BATCH_AXES)} * "
                f"train.micro_batches = {' * '.join(map(str, sizes))}, "
                f"got {global_batch_size}; the nearest that fits is "
                f"{max(1, round(global_batch_size / shards)) * shards}."
            )

    def check_tokens(self, num_image_tokens: int) -> None:
        """Raises UserError if `sequence` cannot split the image tokens evenly."""
        if num_image_tokens % self.sequence:
            raise UserError(
                "mesh.sequence must divide the image tokens of an example, got "
                f"{self.sequence} for {num_image_tokens} tokens; choose a divisor of "
                f"{num_image_tokens}."
            )


def make_mesh(config: MeshConfig, *, devices: Sequence[jax.Device] = ()) -> Mesh:
    """Arranges the devices (all visible ones by default) as the config says.

    Raises:
      UserError: if the axes do not multiply to the number of devices, or `slice` is
        not the number of slices.
    """
    devices = list(devices) or jax.devices()
    axes = dataclasses.asdict(config.resolve(len(devices)))
    return Mesh(
        arrange(devices, axes),
        tuple(axes),
        # Auto: the compiler propagates shardings from parameters and batch.
        axis_types=(AxisType.Auto,) * len(axes),
    )


def arrange(devices: Sequence[jax.Device], axes: Mapping[str, int]) -> np.ndarray:
    """Devices in the shape of the mesh, with neighbours on the network as neighbours.

    Args:
      devices: as many as the axes multiply to.
      axes: mesh axis -> size, `slice` first.

    Raises:
      UserError: if the number of slices of TPU devices is not that of axis `slice`.
    """
    num_slices, *inner = axes.values()
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    if devices[0].platform != "tpu":  # no such network: any equal parts are fine
        groups = np.array_split(np.array(devices), num_slices)
        slices = dict(enumerate(map(list, groups)))
    check_slices(num_slices, len(slices))
    return np.stack([
        mesh_utils.create_device_mesh(
            inner, slices[index], allow_split_physical_axes=True
        )
        for index in sorted(slices)
    ])  # fmt: skip


def check_slices(slice_axis: int, num_slices: int) -> None:
    """Raises UserError if mesh axis `slice` is not the number of TPU slices."""
    if slice_axis not in (num_slices, -1):
        raise UserError(
            "mesh.slice must be the number of TPU slices that the devices belong to, "
            f"got {slice_axis} for {num_slices}; set --config.mesh.slice={num_slices} "
            "and leave mesh.data at -1."
        )


def num_batch_shards(mesh: Mesh) -> int:
    """Number of parts that a batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def reading_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of `count` equal parts of every batch this process reads.

    Processes that hold the same rows, because `tensor` or `sequence` spans them, read
    the same part.

    Raises:
      UserError: if two processes share some of their rows, but not all.
    """
    held: dict[int, set[int]] = {}
    for shard, devices in enumerate(mesh.devices.reshape(num_batch_shards(mesh), -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(shard)
    parts = sorted({tuple(sorted(shards)) for shards in held.values()})
    if len({*map(len, parts)}) > 1 or sum(map(len, parts)) != num_batch_shards(mesh):
        raise UserError(
            "mesh.tensor * mesh.sequence must stay inside a process or fill whole "
            f"processes, got {mesh.shape['tensor']} * {mesh.shape['sequence']} with "
            f"{mesh.size // len(held)} devices per process; choose divisors of that."
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading dim over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Any, *, mesh: Mesh) -> Any:
    """Joins the rows of all processes into global arrays on the mesh.

    Args:
      batch: pytree of host arrays, the share of [B, ...] of this process.
      mesh: the mesh; its batch axes must divide B.

    Returns:
      The same pytree of jax.Arrays [B, ...], split over `BATCH_AXES`.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)),
        batch,
    )


def abstract_batch(batch: Any, *, size: int, mesh: Mesh) -> Any:
    """What `put_batch` makes of a batch, as ShapeDtypeStructs with shardings.

    Args:
      batch: pytree of arrays or ShapeDtypeStructs, the share of one process.
      size: B, rows over all processes.
      mesh: the mesh.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda rows: jax.ShapeDtypeStruct(
            (size, *rows.shape[1:]), rows.dtype, sharding=sharding
        ),
        batch,
    )


def put_whole(batch: Any, *, mesh: Mesh) -> Any:
    """Global arrays of a batch that every process holds whole.

    Args:
      batch: pytree of host arrays [B, ...], the same on all processes.
      mesh: the mesh; its batch axes must divide B.

    Returns:
      The same pytree of jax.Arrays [B, ...], split over `BATCH_AXES`.
    """
    sharding = batch_sharding(mesh)

    def put(rows: Any) -> jax.Array:
        """One array of the batch."""
        rows = np.asarray(rows)
        return jax.make_array_from_callback(
            rows.shape, sharding, lambda index: rows[index]
        )

    return jax.tree.map(put, batch)
