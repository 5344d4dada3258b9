# SPDX-License-Identifier: Apache-2.0
"""One row per executed instruction: its class, cycles, bytes and FLOPs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from rfjax.plan import collectives
from rfjax.plan.collectives import Collective
from rfjax.plan.hlo import Computation, Instruction, Program, Shape
from rfjax.plan.kernels import undeclared_flops

# Instructions that move nothing: views, markers, and ends of asynchronous pairs.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
    "partition-id", "replica-id", "opt-barrier", "domain", "add-dependency",
    "all-gather-done", "all-reduce-done", "collective-permute-done", "async-done",
    "async-update", "copy-done", "send-done", "recv", "recv-done", "get-dimension-size",
}  # fmt: skip
_COPIES = {
    "copy", "transpose", "slice", "dynamic-slice", "dynamic-update-slice",
    "concatenate", "pad", "reshape", "gather", "scatter", "reverse",
}  # fmt: skip
_PASSES = {"bitcast", "get-tuple-element", "tuple", "reshape", "opt-barrier"}
_SLICES = {"slice", "dynamic-slice", "gather"}
_MATMULS = {"dot", "convolution"}
_KERNELS = {"tpu_custom_call"}

CLASSES = (
    "matmul", "kernel", "elementwise", "copy", "prefetch", "broadcast", "reduce",
    "collective",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One instruction, with all its runs in a step added up.

    Attributes:
      name: of the instruction.
      source: the model code it came from, as far as the compiler recorded it.
      op_class: one of `CLASSES`.
      count: runs per step.
      cycles: the compiler's estimate; 0 for kernels and collectives.
      hbm_bytes: bytes read and written in main memory.
      flops: of matrix products and kernels.
      collective: what it sends, if it is or contains a collective.
    """

    name: str
    source: str
    op_class: str
    count: int
    cycles: float
    hbm_bytes: float
    flops: float
    collective: Collective | None = None


def account(program: Program, *, mesh_shape: Mapping[str, int]) -> list[Row]:
    """All rows of a step on one chip, in order of execution."""
    rows = []
    for computation, instruction, count in program.run():
        op_class = classify(program, instruction)
        if op_class is None or count == 0:
            continue
        collective = None
        if op_class == "collective" or (
            op_class == "matmul" and collectives.kind_of(program, instruction)
        ):
            collective = collectives.read_collective(
                program, computation, instruction, count=count, mesh_shape=mesh_shape
            )
        rows.append(
            Row(
                name=instruction.name,
                source=instruction.attribute(r'op_name="([^"]*)"') or "",
                op_class=op_class,
                count=count,
                cycles=instruction.estimated_cycles * count,
                hbm_bytes=moved_bytes(program, computation, instruction) * count,
                flops=flops(program, computation, instruction) * count,
                collective=collective,
            )
        )
    return rows


def classify(program: Program, instruction: Instruction) -> str | None:
    """The class of an instruction, or None if it costs nothing."""
    opcode = instruction.opcode
    if opcode in _FREE:
        return None
    inner = {i.opcode for _, i in program.inside(instruction)}
    if (opcode in _MATMULS) or (opcode == "fusion" and inner & _MATMULS):
        return "matmul"
    if opcode == "custom-call":
        target = instruction.attribute(r'custom_call_target="([^"]*)"')
        return "kernel" if target in _KERNELS else None
    if collectives.kind_of(program, instruction):
        return "collective"
    if opcode.endswith("-start"):
        return "prefetch"
    if opcode.endswith("-done"):
        return None
    if opcode == "fusion":
        work = inner - _FREE - {"convert", "broadcast", "iota", "fusion"}
        if work <= _COPIES:
            return "copy" if work else "broadcast"
        return "elementwise"
    if opcode in _COPIES:
        return "copy"
    if opcode in ("broadcast", "iota"):
        return "broadcast"
    return "reduce" if opcode.startswith("reduce") else "elementwise"


# -- Bytes -------------------------------------------------------------------------


def moved_bytes(
    program: Program, computation: Computation, instruction: Instruction
) -> float:
    """Main-memory bytes that one run reads and writes.

    An input of which a fusion takes only a slice counts as that slice, an array updated
    in place as the update; arrays in VMEM are free.
    """
    if instruction.opcode.endswith("-start"):
        # (operand, result, context): one side of a prefetch is main memory.
        sides = [s for s in instruction.shapes[:2] if s.dtype != "u32" or s.dims]
        return sum(s.hbm_bytes for s in sides)
    if instruction.opcode in ("fusion", "custom-call") and instruction.called:
        return _fusion_bytes(program, computation, instruction)
    operands = [
        shape
        for name in instruction.operands
        for shape in computation.instructions[name].shapes
    ]
    written = sum(shape.hbm_bytes for shape in instruction.shapes)
    if instruction.opcode in _SLICES:
        return 2 * written if operands[0].in_hbm else written
    if instruction.opcode == "dynamic-update-slice":
        return 2 * operands[1].hbm_bytes
    return written + sum(shape.hbm_bytes for shape in operands)


def _fusion_bytes(
    program: Program, computation: Computation, instruction: Instruction
) -> float:
    """Bytes that one run of a fusion reads and writes."""
    fused = program.computations[instruction.called[0]]
    parameters = sorted(
        (i for i in fused.instructions.values() if i.opcode == "parameter"),
        key=lambda i: int(i.arguments),
    )
    total = 0.0
    for parameter, name in zip(parameters, instruction.operands, strict=False):
        shapes = computation.instructions[name].shapes
        if len(shapes) == 1 and shapes[0].in_hbm:
            total += _read_bytes(program, fused, parameter.name, shapes[0])
    roots = [fused.root]
    if fused.root.opcode == "tuple":
        roots = [fused.instructions[name] for name in fused.root.operands]
    for root, shape in zip(roots, instruction.shapes, strict=False):
        if shape.in_hbm:
            update = _updated(program, fused, root)
            total += shape.num_bytes if update is None else update
    return total


def _read_bytes(
    program: Program, computation: Computation, name: str, whole: Shape
) -> float:
    """Bytes that a fused computation reads of one of its inputs."""
    total = 0.0
    for user in computation.users(name):
        if user.opcode in _SLICES and user.operands[0] == name:
            total += sum(shape.num_bytes for shape in user.shapes)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue  # updated in place: written, not read
        elif user.opcode in _PASSES:
            total += _read_bytes(program, computation, user.name, whole)
        elif user.opcode == "fusion":
            inner = program.computations[user.called[0]]
            position = user.operands.index(name)
            parameter = next(
                i
                for i in inner.instructions.values()
                if i.opcode == "parameter" and int(i.arguments) == position
            )
            total += _read_bytes(program, inner, parameter.name, whole)
        else:
            return whole.num_bytes
    return min(total, whole.num_bytes)


def _updated(
    program: Program, computation: Computation, root: Instruction
) -> float | None:
    """Bytes of the in-place update that a root is, or None if it is not one."""
    while root.opcode in ("bitcast", "reshape"):
        root = computation.instructions[root.operands[0]]
    if root.opcode == "fusion":
        inner = program.computations[root.called[0]]
        return _updated(program, inner, inner.root)
    if root.opcode != "dynamic-update-slice":
        return None
    update = computation.instructions[root.operands[1]].shapes[0]
    return update.num_bytes


# -- FLOPs -------------------------------------------------------------------------


def flops(
    program: Program, computation: Computation, instruction: Instruction
) -> float:
    """FLOPs of the matrix products of one run; kernels: declared, or known by name."""
    if instruction.opcode == "custom-call":
        declared = float(instruction.attribute(r'"flops":"?(\d+)"?') or 0)
        return declared or undeclared_flops(
            instruction.name + (instruction.attribute(r'op_name="([^"]*)"') or ""),
            [
                shape.dims
                for name in instruction.operands
                for shape in computation.instructions[name].shapes
                if "f" in shape.dtype
            ],
        )
    total = 0.0
    if instruction.opcode in _MATMULS:
        total += _product_flops(computation, instruction)
    if instruction.opcode == "fusion":
        for name, inner in program.inside(instruction):
            if inner.opcode in _MATMULS:
                total += _product_flops(program.computations[name], inner)
    return total


def _product_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of a dot or a convolution."""
    left, right = (
        computation.instructions[name].shapes[0] for name in instruction.operands[:2]
    )
    result = instruction.shapes[0]
    if instruction.opcode == "dot":
        contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
        dims = [int(d) for d in contracted.split(",") if d]
        return 2.0 * result.size * math.prod(left.dims[d] for d in dims)
    return convolution_flops(left, right, result, instruction.attributes)


def convolution_flops(
    left: Shape, right: Shape, result: Shape, attributes: str
) -> float:
    """FLOPs of a convolution, not counting products with padding and holes.

    The TPU compiler writes batched matrix products as convolutions whose spatial dims
    are the batch: of n x n pairs of input and kernel positions only n meet.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    inputs, kernel, outputs = labels[1], labels[2], labels[3]
    window = re.search(r"window=\{([^}]*)\}", attributes)
    settings = dict(
        pair.split("=", 1) for pair in (window[1].split() if window else ())
    )
    spatial = sorted(label for label in kernel if label.isdigit())
    pairs = 1
    for axis, label in enumerate(spatial):
        pairs *= _meeting_positions(
            num_in=left.dims[inputs.index(label)],
            num_kernel=right.dims[kernel.index(label)],
            num_out=result.dims[outputs.index(label)],
            stride=_window_number(settings.get("stride"), axis, 1),
            pad=_window_number(settings.get("pad"), axis, 0),
            in_dilation=_window_number(settings.get("lhs_dilate"), axis, 1),
            kernel_dilation=_window_number(settings.get("rhs_dilate"), axis, 1),
        )
    batch = result.dims[outputs.index("b")]
    features = result.dims[outputs.index("f")]
    contracted = right.dims[kernel.index("i")]
    groups = re.search(r"batch_group_count=(\d+)", attributes)
    return (
        2.0 * batch * features * contracted * pairs / (int(groups[1]) if groups else 1)
    )


def _window_number(text: str | None, axis: int, default: int) -> int:
    """The entry of one axis in 1x2x3, or its low end in 0_0x1_1."""
    if text is None:
        return default
    return int(text.split("x")[axis].split("_")[0])


def _meeting_positions(
    *,
    num_in: int,
    num_kernel: int,
    num_out: int,
    stride: int,
    pad: int,
    in_dilation: int,
    kernel_dilation: int,
) -> int:
    """(output, kernel) positions whose product reads a real input element."""
    if num_kernel == 1 and pad == 0 and in_dilation == 1:
        return num_out
    last = (num_in - 1) * in_dilation
    met = 0
    for out in range(num_out):
        for tap in range(num_kernel):
            position = out * stride + tap * kernel_dilation - pad
            met += 0 <= position <= last and position % in_dilation == 0
    return met
