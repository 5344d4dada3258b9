# SPDX-License-Identifier: Apache-2.0
"""Large memory pages for what runs on a CPU.

XLA takes the scratch memory of a step from malloc and gives it back after the step. In
pages of 4 KiB that is 270,000 page faults a step for the 1.1 GB of configs/bench.py,
and up to a fifth of its time; less where free memory lies in small pieces. glibc asks
the kernel for pages of 2 MiB if it is told to, but only when a process starts.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"
_FIRST_GLIBC = (2, 35)  # that knows the tunable
_KERNEL_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Starts the running command anew, told to use large pages; returns if it is.

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


def _environment(
    environ: Mapping[str, str], *, libc: tuple[str, str], kernel_setting: str
) -> dict[str, str] | None:
    """The environment to start anew with; None to go on."""
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
