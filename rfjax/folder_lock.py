# SPDX-License-Identifier: Apache-2.0
"""Locks on folders, which the system frees when a process dies; nothing is written."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def held(folder: Path, operation: int) -> Iterator[int]:
    """Holds a lock on a folder, where the file system has locks.

    Args:
      folder: which is there.
      operation: of `fcntl.flock`.

    Yields:
      A descriptor of the folder.

    Raises:
      FileNotFoundError: there is no such folder.
      BlockingIOError: `operation` does not wait, and another process has the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            raise
        except OSError:
            pass  # a file system without locks
        yield descriptor
    finally:
        os.close(descriptor)
