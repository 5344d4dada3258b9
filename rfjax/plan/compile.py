# SPDX-License-Identifier: Apache-2.0
"""Compiles a train step ahead of time, for devices that need not exist."""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from rfjax.errors import UserError

# Chips whose compiled programs jaxlib 0.10.2 cannot print; the compiler itself can.
UNPRINTABLE = {"tpu7x"}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler made of a step.

    Attributes:
      text: optimised HLO.
      argument_bytes: train state and batch, bytes per device.
      temporary_bytes: everything else at the peak, bytes per device.
      seconds: time spent on tracing and compiling.
    """

    text: str
    argument_bytes: int
    temporary_bytes: int
    seconds: float

    @property
    def hbm_bytes(self) -> int:
        """Peak memory use, bytes per device."""
        return self.argument_bytes + self.temporary_bytes


class DoesNotFit(UserError):
    """The program needs more memory than a device has.

    Attributes:
      used_bytes: bytes needed per device.
      limit_bytes: bytes available per device.
      argument_bytes: how many of the needed ones are train state and batch.
    """

    def __init__(self, *, used_bytes: float, limit_bytes: float, argument_bytes: float):
        self.used_bytes = used_bytes
        self.limit_bytes = limit_bytes
        self.argument_bytes = argument_bytes
        super().__init__(
            f"the train step must fit {limit_bytes / 1e9:.1f} GB of HBM per chip, and "
            f"needs {used_bytes / 1e9:.1f} GB, {(used_bytes - limit_bytes) / 1e9:.1f} "
            f"GB too much; {remedy(used_bytes, argument_bytes=argument_bytes)}"
        )


def compile_step(step: jax.stages.Wrapped, *args: Any, chip_name: str = "") -> Compiled:
    """Compiles step(*args) for the devices in the shardings of its arguments.

    Args:
      step: what `jax.jit` returned.
      *args: state, batch and the rest as ShapeDtypeStructs with shardings.
      chip_name: the kind of those devices, a name in `topology.CHIPS`.

    Raises:
      DoesNotFit: if the program exceeds the memory of a device.
    """
    start = time.perf_counter()
    lowered = step.lower(*args)
    try:
        if chip_name in UNPRINTABLE:
            compiled, text = _compile_and_dump(lowered)
        else:
            compiled = lowered.compile()
            text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        excess = memory_excess(str(error))
        if excess is None:
            raise
        used, limit = excess
        raise DoesNotFit(
            used_bytes=used, limit_bytes=limit, argument_bytes=shard_bytes(args)
        ) from error
    memory = compiled.memory_analysis()
    return Compiled(
        text=text,
        argument_bytes=memory.argument_size_in_bytes,
        # Outputs reuse the donated state; those that do not are counted here.
        temporary_bytes=memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        seconds=time.perf_counter() - start,
    )


def _compile_and_dump(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """The program, and its text from the files that the compiler writes on request."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        (path,) = Path(folder).glob("*.after_codegen.txt")
        return compiled, path.read_text(encoding="utf-8")


def memory_excess(message: str) -> tuple[float, float] | None:
    """(bytes needed, bytes available) from the compiler's out-of-memory message."""
    size = r"([\d.]+)([KMGT]?)"
    match = re.search(rf"Used {size} of {size} hbm", message) or re.search(
        rf"\({size}\) exceeds available HBM \({size}\)", message
    )
    if match is None:
        return None
    return float(match[1]) * _UNITS[match[2]], float(match[3]) * _UNITS[match[4]]


def remedy(used_bytes: float, *, argument_bytes: float) -> str:
    """What to change: more shards if the state is the load, else fewer activations."""
    if argument_bytes > used_bytes / 2:
        return (
            f"{argument_bytes / 1e9:.1f} GB of it is the train state: raise mesh.fsdp "
            "or take a larger slice."
        )
    return (
        f"only {argument_bytes / 1e9:.1f} GB of it is the train state: lower "
        "train.global_batch_size, raise train.micro_batches, or set "
        "model.remat=full."
    )


def shard_bytes(abstract: Any) -> int:
    """Bytes per device of a tree of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )
