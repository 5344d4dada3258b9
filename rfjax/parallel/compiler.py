# SPDX-License-Identifier: Apache-2.0
"""Compiler options per platform, the same in training and in plans."""

from __future__ import annotations

from jax.sharding import Mesh

from rfjax import cpu

# platform -> compiler options
COMPILER_OPTIONS = {
    # Memory for the blocks of one instruction. The default, 16 MiB, forces matrix
    # products with several inputs and outputs into blocks that leave the matrix unit
    # idle; a chip has 128 MiB, which the kernels and prefetched arrays share.
    "tpu": {"xla_tpu_scoped_vmem_limit_kib": "32768"},
    "cpu": cpu.COMPILER_OPTIONS,
}


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Options for `jax.jit` of a program that runs on a mesh; None for the defaults."""
    return COMPILER_OPTIONS.get(mesh.devices.flat[0].platform)
