# SPDX-License-Identifier: Apache-2.0
"""Collectives in a compiled program: kind, mesh axes, bytes, and whether they block.

The program for several slices is that of one slice. Communication between slices
appears as a send through the host (and a receive), with the collective that it stands
for as an attribute.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

from rfjax.plan.hlo import Computation, Instruction, Program

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "ragged-all-to-all", "collective-broadcast",
)  # fmt: skip
_BETWEEN_SLICES = r'_xla_megascale_transfer_type="(\w+)"'
# Bytes moved per chip as a share of the larger of operand and result; ring algorithms.
_MOVED = {"all-reduce": lambda n: 2 * (n - 1) / n, "collective-permute": lambda n: 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: one of `KINDS`.
      axes: mesh axes it spans, joined by +; "?" if the groups follow none.
      group_size: devices in each group.
      moved_bytes: bytes sent by each chip, over all runs in a step.
      count: runs per step.
      is_async: whether computation can be scheduled alongside it.
      from_padding: whether it is an all-gather in disguise: an all-reduce over shards
        that were padded with zeros to full size.
    """

    kind: str
    axes: str
    group_size: int
    moved_bytes: float
    count: int
    is_async: bool
    from_padding: bool


def kind_of(program: Program, instruction: Instruction) -> str | None:
    """The kind of collective an instruction is or wraps, or None."""
    opcodes = [instruction.opcode]
    if instruction.opcode == "send":
        transfer = instruction.attribute(_BETWEEN_SLICES)
        return transfer and transfer.lower().replace("_", "-")
    if instruction.name.startswith("async-collective-done"):
        return None
    if instruction.opcode in ("fusion", "async-start"):
        opcodes += [inner.opcode for _, inner in program.inside(instruction)]
    kinds = [kind for kind in KINDS for o in opcodes if o in (kind, f"{kind}-start")]
    if not kinds:
        return None
    # A fused all-reduce whose result is sliced is a reduce-scatter.
    if kinds[0] == "all-reduce" and instruction.opcode == "fusion":
        return "reduce-scatter" if "dynamic-slice" in opcodes else "all-reduce"
    return kinds[0]


def read_collective(
    program: Program,
    computation: Computation,
    instruction: Instruction,
    *,
    count: int,
    mesh_shape: Mapping[str, int],
) -> Collective:
    """Reads an instruction for which `kind_of` returns a kind."""
    kind = kind_of(program, instruction)
    if instruction.opcode == "send":
        num_slices = mesh_shape.get("slice", 1)
        share = _MOVED.get(kind, lambda n: (n - 1) / n)(num_slices)
        return Collective(
            kind=kind,
            axes="slice",
            group_size=num_slices,
            moved_bytes=share * instruction.shapes[0].num_bytes * count,
            count=count,
            is_async=False,  # the slow network is never counted as hidden
            from_padding=False,
        )
    lines = [instruction, *(inner for _, inner in program.inside(instruction))]
    line = next(i for i in lines if i.opcode.removesuffix("-start") in KINDS)
    groups = parse_groups(line.attributes, num_devices=math.prod(mesh_shape.values()))
    operands = [
        sum(s.num_bytes for s in computation.instructions[name].shapes)
        for name in instruction.operands
    ]
    # The start of a pair returns (operand, result, context).
    # A product may gather its own weights; the gathered array is then the line's.
    results = [s.num_bytes for s in line.shapes]
    if kind == "all-gather":
        size = max(results) if line.opcode.endswith("-start") else sum(results)
    else:
        size = sum(operands)
    share = _MOVED.get(kind, lambda n: (n - 1) / n)(max(len(groups[0]), 1))
    return Collective(
        kind=kind,
        axes=name_axes(groups, mesh_shape=mesh_shape),
        group_size=len(groups[0]),
        moved_bytes=share * size * count,
        count=count,
        # Starts of pairs, and communication inside a product.
        is_async=instruction.opcode.endswith("-start")
        or instruction.name.startswith("async-collective-start")
        or any(i.opcode in ("dot", "convolution") for i in lines),
        from_padding=kind == "all-reduce" and _is_padded(program, computation, line),
    )


def _is_padded(program: Program, computation: Computation, line: Instruction) -> bool:
    """Whether a large operand was just written into zeros of full size."""
    for name in line.operands:
        maker = computation.instructions.get(name)
        if maker is None or sum(s.num_bytes for s in maker.shapes) < 2**16:
            continue
        opcodes = {maker.opcode, *(i.opcode for _, i in program.inside(maker))}
        if opcodes & {"pad", "dynamic-update-slice"} and not opcodes & {
            "dot", "convolution",
        }:  # fmt: skip
            return True
    return False


def parse_groups(attributes: str, *, num_devices: int) -> list[tuple[int, ...]]:
    """Device groups of a collective, in either notation of HLO.

    {{0,1},{2,3}} lists them; [2,2]<=[4] numbers them in order; [2,2]<=[2,2]T(1,0) after
    a transposition; mesh['a'=2,'b'=2] {'a'} names axes of a mesh. No groups at all
    means one group of all devices.
    """
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes)
    if named:
        return _named_groups(named[1], named[2])
    counted = re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    )
    if counted:
        shape, source = (tuple(map(int, counted[i].split(","))) for i in (1, 2))
        ids = np.arange(math.prod(source)).reshape(source)
        if counted[3]:
            ids = ids.transpose(tuple(map(int, counted[3].split(","))))
        return [tuple(map(int, row)) for row in ids.reshape(shape)]
    listed = re.search(
        r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", attributes
    )
    if listed:
        rows = re.findall(r"\{([\d,]+)\}", listed[1])
        groups = [tuple(map(int, row.split(","))) for row in rows]
        if "source_target_pairs" in attributes:
            return _join_pairs(groups)
        return groups
    return [tuple(range(num_devices))]


def _named_groups(mesh: str, chosen: str) -> list[tuple[int, ...]]:
    """Groups along named axes or parts of them: 'a':(2)4 is 4 of it, with 2 outside."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    shape, names = [], []
    parts = {
        name: (int(outer or 1), int(size or sizes[name]))
        for name, outer, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", chosen)
    }
    for name, size in sizes.items():
        outer, inner = parts.get(name, (size, 1))
        shape += [outer, inner, size // (outer * inner)]
        names += [None, name if name in parts else None, None]
    ids = np.arange(math.prod(shape)).reshape(shape)
    axes = [axis for axis, name in enumerate(names) if name]
    moved = np.moveaxis(ids, axes, range(-len(axes), 0))
    size = math.prod(shape[axis] for axis in axes)
    return [tuple(map(int, row)) for row in moved.reshape(-1, size)]


def _join_pairs(pairs: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Groups of devices that send to each other, directly or not."""
    group_of: dict[int, set[int]] = {}
    for source, target in pairs:
        joined = group_of.get(source, {source}) | group_of.get(target, {target})
        for member in joined:
            group_of[member] = joined
    return sorted({tuple(sorted(group)) for group in group_of.values()})


def name_axes(groups: list[tuple[int, ...]], *, mesh_shape: Mapping[str, int]) -> str:
    """The mesh axes that a collective spans, e.g. data+fsdp; "?" if there are none.

    The groups may be those of the first slice alone.
    """
    wanted = {frozenset(group) for group in groups}
    ids = np.arange(math.prod(mesh_shape.values())).reshape(tuple(mesh_shape.values()))
    names = [name for name, size in mesh_shape.items() if size > 1]
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, count):
            axes = [list(mesh_shape).index(name) for name in chosen]
            moved = np.moveaxis(ids, axes, range(-len(axes), 0))
            rows = moved.reshape(-1, math.prod(mesh_shape[name] for name in chosen))
            if wanted <= {frozenset(map(int, row)) for row in rows}:
                return "+".join(chosen)
    return "?"
