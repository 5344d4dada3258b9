# SPDX-License-Identifier: Apache-2.0
"""Reads the compiler's optimised program (HLO text) into plain objects.

Only what the accounting needs: computations, instructions, shapes, which computation
calls which and how often. The text is that of `compiled.as_text()` for a TPU.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from rfjax.errors import UserError

ITEM_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8,
    "s16": 16, "u16": 16, "f16": 16, "bf16": 16, "s32": 32, "u32": 32, "f32": 32,
    "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip

_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_END = re.compile(r"^\}(, execution_thread=.*)?$")
_LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|called_computations|branch_computations)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: element type, dims and layout.

    Attributes:
      dtype: as HLO writes it.
      dims: may be empty.
      layout: the text in braces, with tiles and memory space.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def in_hbm(self) -> bool:
        """Whether it is in main memory: memory space 0, the default."""
        return "S(" not in self.layout

    @property
    def num_bytes(self) -> float:
        """Bytes as laid out in whole tiles; 0 for what is not an array of numbers."""
        dims = list(self.dims)
        tile = re.search(r":T\(([\d,]+)\)", self.layout)
        if tile and dims:
            order = [int(d) for d in self.layout[1:].split(":")[0].split(",") if d]
            for dim, size in zip(order, reversed(tile[1].split(",")), strict=False):
                dims[dim] += -dims[dim] % int(size)
        return math.prod(dims) * ITEM_BITS.get(self.dtype, 0) / 8

    @property
    def hbm_bytes(self) -> float:
        """Bytes if it is in main memory, else 0."""
        return self.num_bytes if self.in_hbm else 0.0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
      name: unique in its computation.
      opcode: e.g. fusion.
      shapes: results, flattened.
      operands: names.
      arguments: the text in parentheses, the value of parameters and constants.
      attributes: the text after the parentheses.
      is_root: whether its result is that of the computation.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations it calls, in order of appearance."""
        names = []
        for many, one in _CALLED.findall(self.attributes):
            names += [n.strip().lstrip("%") for n in (many or one).split(",")]
        return tuple(names)

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes, or None."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None

    @property
    def estimated_cycles(self) -> int:
        """The compiler's own estimate, 0 if it gives none."""
        return int(self.attribute(r'"estimated_cycles":"(\d+)"') or 0)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions, in order of execution."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose result is returned."""
        return next(i for i in self.instructions.values() if i.is_root)

    def users(self, name: str) -> list[Instruction]:
        """Instructions that read the result of the named one."""
        return [i for i in self.instructions.values() if name in i.operands]


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations of a module, and the name of the entry."""

    computations: dict[str, Computation]
    entry: str

    def inside(self, instruction: Instruction) -> Iterator[tuple[str, Instruction]]:
        """(computation, instruction) of all that an instruction calls, at any depth."""
        for name in instruction.called:
            for inner in self.computations[name].instructions.values():
                yield name, inner
                yield from self.inside(inner)

    def run(
        self, computation: str | None = None, times: int = 1
    ) -> Iterator[tuple[Computation, Instruction, int]]:
        """(computation, instruction, number of runs) of everything that is executed.

        Loops count by their trip counts and conditionals by all their branches (an
        upper limit); fusions and reducers are one instruction and are not entered.
        """
        current = self.computations[computation or self.entry]
        for instruction in current.instructions.values():
            if instruction.opcode == "while":
                body = instruction.attribute(r"body=%?([\w.\-]+)")
                yield from self.run(body, times * self.trip_count(instruction))
            elif instruction.opcode in ("call", "conditional"):
                for name in instruction.called:
                    yield from self.run(name, times)
            else:
                yield current, instruction, times

    def trip_count(self, loop: Instruction) -> int:
        """How often a while loop runs, by `known_trip_count` or its exit test.

        Raises:
          UserError: if neither gives it.
        """
        known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        if known:
            return int(known)
        condition = self.computations[loop.attribute(r"condition=%?([\w.\-]+)")]
        constants = [
            int(i.arguments)
            for i in [
                *condition.instructions.values(),
                *(
                    i
                    for c in condition.instructions.values()
                    for _, i in self.inside(c)
                ),
            ]
            if i.opcode == "constant" and re.fullmatch(r"\d+", i.arguments)
        ]
        if len(constants) != 1:
            raise UserError(
                f"loop {loop.name} must have one constant in its exit test, got "
                f"{constants}; its trip count cannot be read."
            )
        return constants[0]


def parse(text: str) -> Program:
    """Reads the text of an HLO module.

    Raises:
      UserError: if it has no entry computation.
    """
    computations, entry, current, name = {}, None, None, None
    lines = re.sub(r"/\*.*?\*/", "", text).splitlines()
    for number, line in enumerate(lines):
        header = _HEADER.match(line)
        if header:
            name, current = header[2], {}
            entry = name if header[1] else entry
        elif _END.match(line) and current is not None:
            computations[name] = Computation(name, current)
            current = None
        elif current is not None and (match := _LINE.match(line)):
            instruction = _parse_instruction(match, _joined(lines, number))
            current[instruction.name] = instruction
    if entry is None:
        raise UserError("the HLO text must have an ENTRY computation, and has none.")
    return Program(computations, entry)


def _joined(lines: list[str], first: int) -> str:
    """An instruction with the further lines that attributes of kernels span."""
    end = first + 1
    while not (_LINE.match(lines[end]) or _END.match(lines[end])):
        end += 1
    return " ".join(lines[first:end])


def _parse_instruction(match: re.Match, line: str) -> Instruction:
    """Reads a line whose name was matched by `_LINE`."""
    rest = line[match.end() :]
    if rest.startswith("("):
        end = _closing_bracket(rest, 0) + 1
    else:
        end = rest.index(" ")
    types, rest = rest[:end], rest[end:].strip()
    opcode, _, _ = rest.partition("(")
    close = _closing_bracket(rest, len(opcode))
    arguments = rest[len(opcode) + 1 : close]
    return Instruction(
        name=match[2],
        opcode=opcode,
        shapes=tuple(
            Shape(dtype, tuple(map(int, filter(None, dims.split(",")))), layout)
            for dtype, dims, layout in _SHAPE.findall(types)
        ),
        operands=tuple(re.findall(r"%([\w.\-]+)", arguments)),
        arguments=arguments,
        attributes=rest[close + 1 :],
        is_root=bool(match[1]),
    )


def _closing_bracket(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "(":
            depth += 1
        elif text[index] == ")":
            depth -= 1
            if depth == 0:
                return index
    raise UserError(f"the HLO line must close its parentheses: {text[:80]}")
