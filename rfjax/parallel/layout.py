# SPDX-License-Identifier: Apache-2.0
"""What each device holds, before anything runs: as a table, as JSON, as a picture.

Only sizes are needed: the mesh may have thousands of devices, and none need exist.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding

from rfjax import whole_files
from rfjax.parallel.mesh import MeshConfig
from rfjax.parallel.sharding import (
    RULES,
    num_shards,
    parameter_path,
    state_shardings,
)

AXES = {  # mesh axis -> what it does
    "slice": "copies of the model joined by the data-centre network: each with its "
    "share of the batch; kernel gradients cross as shards",
    "data": "copies of the model, each with its share of the batch",
    "fsdp": "shards of parameters, EMA and moments, and of the batch",
    "tensor": "shards of heads and hidden units inside a layer",
    "sequence": "shards of the image tokens of each example",
}
ACTIVATIONS = ("batch", "image_tokens", "text_tokens", "embed_activation")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter on the mesh.

    Attributes:
      path: as blocks/image/out/kernel.
      shape: whole.
      dims: logical name of each dim.
      shard_shape: what a device holds.
      axes: mesh axes of more than one device that split it.
      num_bytes: of the shard, on each device.
    """

    path: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    shard_shape: tuple[int, ...]
    axes: tuple[str, ...]
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """All parameters of a model on a mesh.

    Attributes:
      mesh: axis -> size.
      parameters: in the order of the tree.
      state_bytes: of a device: parameters, EMA and optimizer state.
    """

    mesh: Mapping[str, int]
    parameters: tuple[Parameter, ...]
    state_bytes: int

    @property
    def num_devices(self) -> int:
        """Of the mesh."""
        return math.prod(self.mesh.values())

    @property
    def parameter_bytes(self) -> int:
        """Of a device."""
        return sum(parameter.num_bytes for parameter in self.parameters)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `--json` writes them."""
        return {
            "mesh": dict(self.mesh),
            "num_devices": self.num_devices,
            "parameter_bytes_per_device": self.parameter_bytes,
            "state_bytes_per_device": self.state_bytes,
            "parameters": [dataclasses.asdict(p) for p in self.parameters],
            "rules": {name: list(rule.axes) for name, rule in RULES.items()},
        }

    def __str__(self) -> str:
        return explain(self)


def lay_out(
    abstract_params: Any,
    abstract_state: Any,
    *,
    dims: Callable[[str], tuple[str, ...]],
    mesh: MeshConfig,
) -> StateLayout:
    """The layout of a model on a mesh whose axes all have a size.

    Args:
      abstract_params: pytree of ShapeDtypeStructs.
      abstract_state: the train state around it, the same.
      dims: path of a parameter -> logical names of its dims, `Model.dims`.
      mesh: resolved sizes.

    Raises:
      UserError: if an axis divides no dim that it splits.
    """
    axes = dataclasses.asdict(mesh)
    abstract_mesh = AbstractMesh(tuple(axes.values()), tuple(axes))

    shardings = state_shardings(
        (abstract_params, abstract_state),
        params=abstract_params,
        dims=dims,
        mesh=abstract_mesh,
    )

    def num_bytes(leaf: Any, sharding: NamedSharding) -> int:
        """Bytes of one shard."""
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    parameters = tuple(
        Parameter(
            path=path,
            shape=leaf.shape,
            dims=dims(path),
            shard_shape=sharding.shard_shape(leaf.shape),
            axes=tuple(
                axis
                for name in dims(path)
                for axis in RULES[name].axes
                if axes[axis] > 1
            ),
            num_bytes=num_bytes(leaf, sharding),
        )
        for (key_path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(abstract_params),
            jax.tree.leaves(shardings[0]),
            strict=True,
        )
        for path in [parameter_path(key_path)]
    )
    state_bytes = jax.tree.map(num_bytes, abstract_state, shardings[1])
    return StateLayout(
        mesh=axes, parameters=parameters, state_bytes=sum(jax.tree.leaves(state_bytes))
    )


def explain(layout: StateLayout) -> str:
    """Each parameter's layout and bytes per device, and the rules that decided it."""
    rows = [("parameter", "shape", "dims", "split over", "MiB/device")]
    for parameter in layout.parameters:
        over = "+".join(f"{axis}={layout.mesh[axis]}" for axis in parameter.axes)
        rows.append((
            parameter.path, _times(parameter.shape), ", ".join(parameter.dims),
            over or "-", f"{parameter.num_bytes / 2**20:.3f}",
        ))  # fmt: skip
    rows.append(("all parameters", "", "", "", f"{layout.parameter_bytes / 2**20:.3f}"))
    rows.append(("train state", "", "", "", f"{layout.state_bytes / 2**20:.3f}"))
    parts = [_describe(layout), _table(rows)]
    used = {name for p in layout.parameters for name in p.dims}
    parts += [
        f"{title}\n" + _table([_rule_row(name, layout.mesh) for name in names])
        for title, names in (
            ("why, by dim", [name for name in RULES if name in used]),
            ("activations", ACTIVATIONS),
        )
    ]
    axes = [(f"{axis}={n}", AXES[axis]) for axis, n in layout.mesh.items()]
    return "\n\n".join([*parts, "mesh axes\n" + _table(axes)])


def _rule_row(name: str, axes: Mapping[str, int]) -> tuple[str, str, str]:
    rule = RULES[name]
    split = " * ".join(rule.axes)
    over = f"{split} = {num_shards(name, axes)}" if rule.axes else "-"
    return name, over, rule.reason


def _describe(layout: StateLayout) -> str:
    sizes = " ".join(f"{axis}={n}" for axis, n in layout.mesh.items())
    return f"mesh {sizes}: {layout.num_devices} devices"


def _times(shape: tuple[int, ...]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, shape))


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


_COLOURS = {  # axes that split a parameter -> colour
    ("fsdp",): "#1f6f8b",
    ("fsdp", "tensor"): "#e0a458",
    ("tensor",): "#a44a3f",
    (): "#b8c4ce",
}
_MAX_BARS = 24


def draw(layout: StateLayout, path: Path | str) -> None:
    """Draws the bytes per device by parameter, the largest first; PNG, SVG or PDF."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    ordered = sorted(layout.parameters, key=lambda p: -p.num_bytes)
    shown, rest = ordered[:_MAX_BARS], ordered[_MAX_BARS:]
    bars = [(p.path, p.num_bytes, p, tuple(sorted(p.axes))) for p in shown]
    figure = Figure(figsize=(11, 1.8 + 0.27 * (len(bars) + 1)), layout="constrained")
    axes = figure.subplots()
    labels = [path for path, *_ in bars]
    sizes = [num_bytes / 2**20 for _, num_bytes, *_ in bars]
    colours = [_COLOURS[over] for *_, over in bars]
    notes = [
        f"{size:,.3g} MiB    {_times(p.shape)}"
        + (f"  \N{RIGHTWARDS ARROW}  {_times(p.shard_shape)}" if p.axes else "  whole")
        for size, (_, _, p, _) in zip(sizes, bars, strict=True)
    ]
    if rest:
        labels.append(f"{len(rest)} smaller ones")
        sizes.append(sum(p.num_bytes for p in rest) / 2**20)
        colours.append("#e6ebef")
        notes.append(f"{sizes[-1]:,.3g} MiB in all")
    drawn = axes.barh(labels, sizes, height=0.72, color=colours)
    axes.bar_label(drawn, notes, padding=4, fontsize=8, color="#444444")
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, max(sizes) * 1.6)  # room for the notes
    axes.set_xlabel("MiB per device")
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    used = {over for *_, over in bars}
    axes.legend(
        handles=[
            Patch(
                color=colour,
                label="split over "
                + " and ".join(f"{axis} = {layout.mesh[axis]}" for axis in over)
                if over
                else "whole on every device",
            )
            for over, colour in _COLOURS.items()
            if over in used
        ],
        frameon=False,
        loc="lower right",
    )
    figure.suptitle(
        f"{sum(math.prod(p.shape) for p in layout.parameters) / 1e9:.3g}B parameters, "
        f"{_describe(layout)}\n"
        f"each holds {layout.parameter_bytes / 2**30:.3g} GiB of parameters, "
        f"{layout.state_bytes / 2**30:.3g} GiB of train state",
        fontsize=11, x=0.01, ha="left",
    )  # fmt: skip
    with whole_files.replacing(path) as partial:
        figure.savefig(partial, dpi=150)
