# SPDX-License-Identifier: Apache-2.0
"""Where every parameter and activation lives: a table and its application.

A backbone names the dims of its parameters and activations, `RULES` sends the names to
mesh axes. Nothing here knows a model. `rfjax.parallel.layout` prints and draws what
follows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from rfjax.errors import UserError
from rfjax.types import DimNames


class Rule(NamedTuple):
    """Where dims of one logical name go.

    Attributes:
      axes: mesh axes that split them; none means whole on every device.
      reason: what the dim is, and why it is split or not.
    """

    axes: tuple[str, ...]
    reason: str


RULES = {  # logical name -> rule
    "batch": Rule(
        ("slice", "data", "fsdp"),
        "[B, ...] examples: losses and gradients are averaged over all of them",
    ),
    "image_tokens": Rule(
        ("sequence",),
        "[B, I, D] activations and queries; keys and values are gathered",
    ),
    "text_tokens": Rule(
        (),
        "[B, T, D] whole: 154 has few divisors, and beside the image tokens of the "
        "sizes that need `sequence` they are few (4 % at 1024 px)",
    ),
    "embed_activation": Rule((), "[B, S, D] whole: norms need all features of a token"),
    "layers": Rule((), "[blocks, ...] whole: the scan walks along it"),
    "embed": Rule(
        ("fsdp",),
        "[D, ...] width side of every kernel: gathered for the block that needs it, "
        "gradients summed into shards",
    ),
    "heads": Rule(
        ("tensor",), "[D, N * K] each device attends with its heads; `out` sums up"
    ),
    "mlp": Rule(
        ("tensor",), "[D, F] each device has its hidden units; `mlp_out` sums up"
    ),
    # Split by `tensor`, shards would cut across the six vectors of an adaLN, and XLA
    # 0.10's partitioner then computes wrong modulations on meshes of three axes.
    "modulation": Rule(
        (), "[D, 6 D] adaLN, whole: its six vectors must not be cut across"
    ),
    "input": Rule(
        (), "[P, D], [256, D], [context_dim, D] whole: what enters the model"
    ),
    "output": Rule((), "[D, P], [D, D] whole: what leaves an embedder or the model"),
    "vector": Rule((), "[D] biases, [K] norm scales, whole: a few kilobytes"),
}


def num_shards(name: str, axes: Mapping[str, int]) -> int:
    """Parts that dims of this logical name are split into, for these axis sizes."""
    return math.prod(axes[axis] for axis in RULES[name].axes)


def partition_spec(names: DimNames) -> PartitionSpec:
    """The mesh axes of dims with these logical names (None: not split)."""
    axes = (RULES[name].axes if name else () for name in names)
    return PartitionSpec(*(axis or None for axis in axes))


def parameter_sharding(
    path: str,
    shape: tuple[int, ...],
    *,
    dims: tuple[str, ...],
    mesh: Mesh | AbstractMesh,
) -> NamedSharding:
    """NamedSharding of one parameter.

    Args:
      path: of the parameter, for errors.
      shape: of the parameter.
      dims: logical name of each dim.
      mesh: the mesh.

    Raises:
      UserError: if a mesh axis does not divide its dim. A parameter is never
        replicated silently instead: that would be an out-of-memory error later.
    """
    for name, size in zip(dims, shape, strict=True):
        shards = num_shards(name, mesh.shape)
        if size % shards:
            axes = " * ".join(f"mesh.{axis}" for axis in RULES[name].axes)
            raise UserError(
                f"{axes} must divide dim '{name}' of every parameter, got {shards} for "
                f"{path} with shape {shape}; choose a divisor of {size}."
            )
    return NamedSharding(mesh, partition_spec(dims))


def parameter_path(key_path: Sequence[Any]) -> str:
    """The dict keys of a pytree path, joined: also inside optimizer states."""
    keys = (k.key for k in key_path if isinstance(k, jax.tree_util.DictKey))
    return "/".join(keys)


def state_shardings(
    abstract_state: Any,
    *,
    params: Any,
    dims: Callable[[str], tuple[str, ...]],
    mesh: Mesh | AbstractMesh,
) -> Any:
    """Shardings of a train state: EMA and optimizer moments follow their parameter.

    Args:
      abstract_state: pytree of ShapeDtypeStructs. A leaf under dict keys that end with
        the path of a parameter, and of its shape, is laid out like that parameter;
        any other leaf (step, counts, factored moments) is replicated.
      params: the parameter tree of ShapeDtypeStructs.
      dims: path of a parameter -> logical names of its dims, `Model.dims`.
      mesh: the mesh.

    Returns:
      The same pytree of NamedShardings.
    """
    shapes = {
        parameter_path(key_path): leaf.shape
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }

    def leaf_sharding(key_path: Sequence[Any], leaf: Any) -> NamedSharding:
        """Sharding of one leaf of the state."""
        path = parameter_path(key_path)
        while path and path not in shapes:  # under a label of optax's own
            path = path.partition("/")[2]
        if not path or leaf.shape != shapes[path]:
            return NamedSharding(mesh, PartitionSpec())
        return parameter_sharding(path, leaf.shape, dims=dims(path), mesh=mesh)

    return jax.tree_util.tree_map_with_path(leaf_sharding, abstract_state)


@dataclasses.dataclass(frozen=True)
class MeshLayout:
    """The `Layout` of a mesh: pins activations by the logical names of their dims.

    Attributes:
      mesh: the mesh.
    """

    mesh: Mesh

    def __call__(self, array: jax.Array, names: DimNames) -> jax.Array:
        """Pins an array's layout."""
        sharding = NamedSharding(self.mesh, partition_spec(names))
        return jax.lax.with_sharding_constraint(array, sharding)

    @property
    def platform(self) -> str:
        """What the devices are: cpu, gpu or tpu."""
        return self.mesh.devices.flat[0].platform

    def num_shards(self, name: str) -> int:
        """Parts that a dim of this logical name is split into."""
        return num_shards(name, self.mesh.shape)

    def map_shards(
        self, function: Callable, *, in_names: Any, out_names: Any
    ) -> Callable:
        """Runs a function on each device's shards, for kernels that XLA cannot split.

        Args:
          function: of as many pytrees of arrays as `in_names` has entries.
          in_names: for each argument the logical names of its dims, one tuple for all
            its leaves or a tuple of such tuples, one for each leaf.
          out_names: the same for the result.
        """
        # Unchecked, as kernels carry no types of varying axes. Gradients of what is
        # whole on several devices are still summed over them.
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=_partition_specs(in_names),
            out_specs=_partition_specs(out_names),
            check_vma=False,
        )


def _partition_specs(names: Any) -> Any:
    """`partition_spec` of each tuple of names in a tree of them."""
    return jax.tree.map(
        lambda leaf: partition_spec(leaf),
        names,
        is_leaf=lambda node: all(n is None or isinstance(n, str) for n in node),
    )
