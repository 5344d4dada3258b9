# SPDX-License-Identifier: Apache-2.0
"""What makes CPUs fast: memory pages, freed memory, barriers, flat matrix products.

Memory pages. XLA takes the scratch memory of a step from malloc and gives it back after
the step. In pages of 4 KiB that is 270,000 page faults per step for the 1.1 GB of
configs/bench.py, and up to a fifth of its time; less where free memory lies in small
pieces. glibc asks the kernel for pages of 2 MiB if it is told to, but only when a
process starts.

Freed memory. Records and batches take megabytes each and are soon freed. glibc returns
such memory to the kernel, and the page faults of the next allocation cost twice what
reading a record does, unless it is told to keep it.

Barriers. XLA prefers to recompute sums over blocks, in every block, to writing them to
memory.

Flat products. The backward pass of a float32 product is 1.6 times faster with batch and
token dims joined. A model in float32 is taken to run on a CPU: accelerators train in
bfloat16.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line imports this module before JAX may start
    import jax

COMPILER_OPTIONS = {
    # Keeps barriers until instructions are fused. Without them the gradient of each
    # unrolled block is recomputed from those of all later blocks.
    "xla_disable_hlo_passes": "cse_barrier_expander"
}
TUNABLE = "glibc.malloc.hugetlb"
_FIRST_GLIBC = (2, 35)  # that knows the tunable
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 2**30
_KERNEL_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Restarts the running command with large pages; returns if it has them.

    Does nothing where it would not help: outside Linux with glibc, where the kernel
    gives large pages to all or to none, and where GLIBC_TUNABLES already says
    something about them (glibc.malloc.hugetlb=0 keeps small pages).
    """
    changed = _environment(
        os.environ,
        libc=platform.libc_ver(),
        kernel_setting=_read_kernel_setting(),
    )
    if changed is not None:
        os.execve(sys.executable, sys.orig_argv, changed)


def keep_freed_memory() -> None:
    """Lets malloc use freed memory again, up to 1 GiB, for all of the process.

    Does nothing outside Linux with glibc, and where the environment sets a threshold.
    """
    is_set = "_threshold" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )
    if platform.libc_ver()[0] == "glibc" and not is_set:
        libc = ctypes.CDLL(None)
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(parameter, _KEPT_BYTES)


def keep_blocks_apart(streams: Any) -> Any:
    """Keeps instructions within a block (12 to 15 % of a step on a CPU).

    On a TPU the loop over blocks is such a barrier anyway.

    Args:
      streams: pytree of arrays, what one block hands to the next.
    """
    import jax

    return jax.lax.optimization_barrier(streams)


def multiply_rows(inputs: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Inputs [..., in] @ kernel [in, out] + bias [out], as fast as the platform can.

    Args:
      inputs: float32 on a CPU, bfloat16 elsewhere.
      kernel: in the dtype of the inputs.
      bias: in the dtype of the inputs.
    """
    import jax.numpy as jnp

    if inputs.dtype == jnp.float32:
        rows = inputs.reshape(-1, inputs.shape[-1])
        return (rows @ kernel + bias[None, :]).reshape(*inputs.shape[:-1], -1)
    # A TPU, where 154 text tokens lie in 160 rows: joining batch and token dims would
    # copy them.
    return inputs @ kernel + jnp.expand_dims(bias, tuple(range(inputs.ndim - 1)))


def _environment(
    environ: Mapping[str, str], *, libc: tuple[str, str], kernel_setting: str
) -> dict[str, str] | None:
    """The environment to restart with; None to continue in this one."""
    tunables = environ.get("GLIBC_TUNABLES", "")
    name, version = libc
    if (
        name != "glibc"
        or tuple(map(int, version.split(".")[:2])) < _FIRST_GLIBC
        or "[madvise]" not in kernel_setting
        or TUNABLE in tunables
    ):
        return None
    wanted = f"{TUNABLE}=1"
    return {**environ, "GLIBC_TUNABLES": f"{tunables}:{wanted}" if tunables else wanted}


def _read_kernel_setting() -> str:
    """As "always [madvise] never"; empty where there is no such thing."""
    return _KERNEL_SETTING.read_text() if _KERNEL_SETTING.is_file() else ""
