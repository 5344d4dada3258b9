# SPDX-License-Identifier: Apache-2.0
"""From a jitted train step to a `Plan`: compile, read, add up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from rfjax.plan.accounting import account
from rfjax.plan.compile import compile_step
from rfjax.plan.estimate import estimate
from rfjax.plan.hlo import parse
from rfjax.plan.report import Plan
from rfjax.plan.topology import Topology
from rfjax.plan.traced_flops import traced_flops


def plan_step(
    step: jax.stages.Wrapped,
    *args: Any,
    topology: Topology,
    mesh_shape: Mapping[str, int],
    num_params: int,
    flops_per_sample: float,
    global_batch_size: int,
    num_images: int,
) -> Plan:
    """Plans one train step.

    Args:
      step: what `jax.jit` returned, on a mesh of `topology.make_devices`.
      *args: state, batch and the rest as ShapeDtypeStructs with shardings.
      topology: what it will run on.
      mesh_shape: mesh axis -> size.
      num_params: of the model.
      flops_per_sample: model FLOPs of forward and backward for one example.
      global_batch_size: examples per step.
      num_images: training budget in images.

    Raises:
      DoesNotFit: if the program exceeds the memory of a device.
    """
    compiled = compile_step(step, *args, chip_name=topology.chip_name)
    rows = account(parse(compiled.text), mesh_shape=mesh_shape)
    per_chip_batch_size = global_batch_size / topology.num_devices
    return Plan(
        topology=topology,
        mesh=dict(mesh_shape),
        num_params=num_params,
        per_chip_batch_size=per_chip_batch_size,
        model_flops=flops_per_sample * per_chip_batch_size,
        expected_flops=traced_flops(step, *args) / topology.num_devices,
        estimate=estimate(rows, chip=topology.chip, num_slices=topology.num_slices),
        collectives=tuple(row.collective for row in rows if row.collective),
        argument_bytes=compiled.argument_bytes,
        temporary_bytes=compiled.temporary_bytes,
        num_images=num_images,
        global_batch_size=global_batch_size,
        compile_seconds=compiled.seconds,
    )
