# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are read while the run goes on training and removes old ones.

A reader holds a shared lock on the folder of the checkpoint, and `collector` takes a
folder away only under an exclusive lock. Neither writes anything: runs on a read-only
disk can be read, and the system frees the lock of a process that dies. A file system
without locks, or with locks of one machine only, leaves a reader unprotected; it then
says that the checkpoint was removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from rfjax import folder_lock
from rfjax.checkpoint.steps import FOLDER, choose_step, removed
from rfjax.parallel import processes


@contextlib.contextmanager
def pinned(workdir: Path | str, step: int | None = None) -> Iterator[int]:
    """Yields the step to read, whose checkpoint stays there within the block.

    Args:
      workdir: run folder.
      step: which checkpoint; the newest by default.

    Raises:
      CheckpointError: if it does not exist, or its save never finished.
    """
    chosen = choose_step(workdir, step)
    while True:
        with _lock(Path(workdir) / FOLDER / str(chosen), fcntl.LOCK_SH) as is_there:
            if is_there:
                yield chosen
                return
        if step is not None:
            raise removed(workdir, step)
        chosen = choose_step(workdir)  # the next newest


@contextlib.contextmanager
def pinned_for_all(workdir: Path | str, step: int | None = None) -> Iterator[int]:
    """`pinned` in a job of several processes: all of them get the same step."""
    with contextlib.ExitStack() as stack:
        chosen = []
        processes.on_first(
            lambda: chosen.append(stack.enter_context(pinned(workdir, step)))
        )
        yield processes.from_first(chosen[0] if chosen else 0)


@contextlib.contextmanager
def unless_pinned(folder: Path) -> Iterator[bool]:
    """Yields whether nobody reads a checkpoint; nobody starts to within the block."""
    with contextlib.ExitStack() as stack:
        try:
            is_free = stack.enter_context(_lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            is_free = False
        yield is_free


@contextlib.contextmanager
def _lock(folder: Path, operation: int) -> Iterator[bool]:
    """Yields whether a folder is still there, once it is locked.

    Raises:
      BlockingIOError: `operation` does not wait, and another process has the lock.
    """
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(folder_lock.held(folder, operation))
        except FileNotFoundError:
            yield False
            return
        yield _is_at(folder, descriptor)


def _is_at(folder: Path, descriptor: int) -> bool:
    """Whether an open folder still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except FileNotFoundError:
        return False
