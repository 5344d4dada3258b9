# SPDX-License-Identifier: Apache-2.0
"""The restart with large memory pages: when, and that the kernel then gives them."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from rfjax import cpu

KERNEL = "always [madvise] never\n"


@pytest.mark.parametrize(
    ("environ", "libc", "kernel_setting"),
    [
        ({}, ("glibc", "2.34"), KERNEL),  # does not know the tunable
        ({}, ("", ""), KERNEL),  # not Linux, or another C library
        ({}, ("glibc", "2.36"), "always madvise [never]"),
        ({}, ("glibc", "2.36"), "[always] madvise never"),  # has them already
        ({}, ("glibc", "2.36"), ""),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, ("glibc", "2.36"), KERNEL),
    ],
)
def test_nothing_is_started_anew_where_it_would_not_help(environ, libc, kernel_setting):
    changed = cpu._environment(environ, libc=libc, kernel_setting=kernel_setting)
    assert changed is None


def test_other_tunables_and_variables_stay():
    changed = cpu._environment(
        {"A": "1", "GLIBC_TUNABLES": "glibc.malloc.check=1"},
        libc=("glibc", "2.35"),
        kernel_setting=KERNEL,
    )
    assert changed == {
        "A": "1",
        "GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.hugetlb=1",
    }


@pytest.mark.skipif(
    cpu._environment(
        {}, libc=platform.libc_ver(), kernel_setting=cpu._read_kernel_setting()
    )
    is None,
    reason="this machine has no large pages to ask for",
)
def test_a_restarted_process_has_large_pages_and_its_arguments():
    """Memory of 2**28 bytes, touched; control: the same without the restart."""
    code = (
        "import sys, numpy as np\n"
        "from rfjax import cpu\n"
        "if 'restart' in sys.argv: cpu.restart_with_huge_pages()\n"
        "kept = np.empty(2**28, np.uint8); kept[::4096] = 1\n"
        "import re; text = open('/proc/self/smaps_rollup').read()\n"
        "print(sys.argv[1:], re.search(r'AnonHugePages: +(\\d+)', text)[1])\n"
    )

    def large_kilobytes(word: str) -> int:
        environ = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
        # NumPy asks for large pages of its own accord.
        environ["NUMPY_MADVISE_HUGEPAGE"] = "0"
        arguments, kilobytes = subprocess.run(
            [sys.executable, "-c", code, word, "b c"],
            env=environ, cwd=Path(__file__).parents[1],
            capture_output=True, text=True, check=True,
        ).stdout.rsplit(" ", 1)  # fmt: skip
        assert arguments == str([word, "b c"])
        return int(kilobytes)

    assert large_kilobytes("restart") > 2**17
    assert large_kilobytes("plain") < 2**12


FAULTS = """
import os, resource, sys
for name in list(os.environ):
    if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES":
        del os.environ[name]
os.environ.update(dict(item.split("=", 1) for item in sys.argv[2:]))
from rfjax import cpu
if sys.argv[1] == "keep":
    cpu.keep_freed_memory()
def read_batch():
    records = [b"x" * 2**21 for _ in range(16)]
for _ in range(3):
    read_batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    read_batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_used_again():
    """Without page faults; controls: unless asked for, and where a user decides."""

    def faults(*arguments):
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
        }
        result = subprocess.run(
            [sys.executable, "-c", FAULTS, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=environ,
        )
        return int(result.stdout)

    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library")
    # 320 MiB are 81,920 pages of 4 KiB.
    assert faults("keep") < 5_000 < 50_000 < faults("leave")
    assert faults("keep", "MALLOC_TRIM_THRESHOLD_=131072") > 50_000
