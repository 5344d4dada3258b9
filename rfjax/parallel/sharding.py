# SPDX-License-Identifier: Apache-2.0
"""Where every parameter and activation lives: two tables and their application.

`PARAMETER_DIMS` names the dims of each parameter by its path; `RULES` sends names to
mesh axes. Models only name dims; nothing here knows the model beyond the paths.
"""

from __future__ import annotations

import dataclasses
import math
import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

RULES = {  # logical name -> mesh axes
    "batch": ("data", "fsdp"),  # [B, ...] activations
    "tokens": (),  # [B, S, D] activations
    "embed_activation": (),  # [B, S, D] activations
    "layers": (),  # [blocks, ...] stacked blocks, walked by the scan
    "embed": ("fsdp",),  # [D, ...] the width side of every kernel
    "heads": ("tensor",),  # [D, N * K] query, key, value; [N * K, D] out
    "mlp": ("tensor",),  # [D, F] MLP in, [F, D] MLP out
    # Not split by `tensor`: shards would cut across the six vectors of an adaLN, and
    # XLA 0.10's partitioner then computes wrong modulations on meshes of three axes.
    "modulation": (),  # [D, 6 D] adaLN, a third of all parameters
    "input": (),  # [P, D], [256, D], [context_dim, D]: what enters the model
    "output": (),  # [D, P] patches, [D, D] second layer of an embedder
    "vector": (),  # [D] biases of the stream, [K] norm scales: a few kilobytes
}

PARAMETER_DIMS = (  # path pattern -> logical names of the dims
    (r"(patch|context)_embed/kernel", ("input", "embed")),
    (r"(timestep|pooled)_embed/hidden/kernel", ("input", "embed")),
    (r"(timestep|pooled)_embed/out/kernel", ("embed", "output")),
    (r"(image|text|image_only)/(query|key|value)/kernel", ("embed", "heads")),
    (r"(image|text|image_only)/(query|key|value)/bias", ("heads",)),
    (r"(image|text|image_only)/out/kernel", ("heads", "embed")),
    (r"(image|text)/mlp_in/kernel", ("embed", "mlp")),
    (r"(image|text)/mlp_in/bias", ("mlp",)),
    (r"(image|text)/mlp_out/kernel", ("mlp", "embed")),
    (r"modulation/kernel", ("embed", "modulation")),
    (r"modulation/bias", ("modulation",)),
    (r"final/linear/kernel", ("embed", "output")),
    (r"(query|key)_norm/scale", ("vector",)),
    (r"bias", ("vector",)),
)


def parameter_dims(path: str) -> tuple[str, ...]:
    """Logical names of a parameter's dims, e.g. blocks/image/out/kernel.

    Raises:
      ValueError: if no pattern in `PARAMETER_DIMS` ends the path.
    """
    for pattern, names in PARAMETER_DIMS:
        if re.search(rf"(^|/){pattern}$", path):
            is_stacked = path.startswith(("blocks/", "dual_blocks/"))
            return ("layers", *names) if is_stacked else names
    raise ValueError(
        f"parameter {path} has no row in parallel.sharding.PARAMETER_DIMS; add one."
    )


def partition_spec(names: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes of dims with these logical names (None: not split)."""
    axes = (RULES[name] if name else () for name in names)
    return PartitionSpec(*(axis or None for axis in axes))


def parameter_sharding(path: str, shape: tuple[int, ...], *, mesh: Mesh):
    """NamedSharding of one parameter.

    Raises:
      ValueError: if a mesh axis does not divide its dim. A parameter is never
        replicated silently instead: that would be an out-of-memory error later.
    """
    names = parameter_dims(path)
    for name, size in zip(names, shape, strict=True):
        shards = math.prod(mesh.shape[axis] for axis in RULES[name])
        if size % shards:
            axes = " * ".join(f"mesh.{axis}" for axis in RULES[name])
            raise ValueError(
                f"{axes} must divide dim '{name}' of every parameter, got {shards} for "
                f"{path} with shape {shape}; choose a divisor of {size}."
            )
    return NamedSharding(mesh, partition_spec(names))


def parameter_path(key_path) -> str:
    """The dict keys of a pytree path, joined: also inside optimizer states."""
    keys = (k.key for k in key_path if isinstance(k, jax.tree_util.DictKey))
    return "/".join(keys)


def state_shardings(abstract_state, *, mesh: Mesh):
    """Shardings of a train state: EMA and optimizer moments follow their parameter.

    Args:
      abstract_state: pytree of ShapeDtypeStructs. A leaf under dict keys that form a
        parameter path is laid out like that parameter; any other leaf (step, counts)
        is replicated.
      mesh: the mesh.

    Returns:
      The same pytree of NamedShardings.
    """

    def leaf_sharding(key_path, leaf):
        path = parameter_path(key_path)
        if not path:
            return NamedSharding(mesh, PartitionSpec())
        return parameter_sharding(path, leaf.shape, mesh=mesh)

    return jax.tree_util.tree_map_with_path(leaf_sharding, abstract_state)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Places activations on a mesh by the logical names of their dims.

    Attributes:
      mesh: the mesh.
    """

    mesh: Mesh

    def __call__(self, array: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        """Pins an array's layout."""
        sharding = NamedSharding(self.mesh, partition_spec(names))
        return jax.lax.with_sharding_constraint(array, sharding)

    @property
    def platform(self) -> str:
        """What the devices are: cpu, gpu or tpu."""
        return self.mesh.devices.flat[0].platform

    def map_shards(self, function, *, in_names, out_names):
        """Runs a function on each device's shards, for kernels that XLA cannot split.

        Args:
          function: of as many pytrees of arrays as `in_names` has entries.
          in_names: logical names of the dims, one tuple for all leaves of an argument.
          out_names: the same for the result.
        """
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=tuple(partition_spec(names) for names in in_names),
            out_specs=partition_spec(out_names),
            check_vma=False,
        )


def make_constrain(mesh: Mesh) -> Layout:
    """What pins an activation's layout by the names of its dims."""
    return Layout(mesh)


def explain(abstract_params, *, mesh: Mesh) -> str:
    """A table of each parameter's shape, layout and bytes a device, with the total."""
    rows = [("parameter", "shape", "dims", "mesh axes", "MiB/device")]
    total = 0.0
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params):
        path = parameter_path(key_path)
        sharding = parameter_sharding(path, leaf.shape, mesh=mesh)
        mebibytes = (
            math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize / 2**20
        )
        total += mebibytes
        names = parameter_dims(path)
        axes = ", ".join("+".join(RULES[name]) or "-" for name in names)
        rows.append((path, str(leaf.shape), ", ".join(names), axes, f"{mebibytes:.3f}"))
    rows.append(("total", "", "", "", f"{total:.3f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
