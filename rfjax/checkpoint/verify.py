# SPDX-License-Identifier: Apache-2.0
"""Compares the files of a checkpoint with their checksums."""

from __future__ import annotations

from pathlib import Path

import jax
from absl import logging

from rfjax import checksums
from rfjax.checkpoint.handler import StateHandler
from rfjax.checkpoint.steps import FOLDER, damaged, removed
from rfjax.parallel import processes


def check_step(workdir: Path | str, step: int) -> None:
    """Compares every file of a checkpoint with its checksum; the processes share them.

    Raises:
      CheckpointError: if a file is missing or altered; the message names it.
    """
    workdir = Path(workdir)
    damage = find_damage(
        workdir, step, share=(jax.process_index(), jax.process_count())
    )
    if processes.any_of_them(bool(damage)):
        # Each process names what it found in its own share.
        reason = "; ".join(damage[:3]) or "another process found and names the file"
        raise damaged(workdir, step, reason)


def find_damage(
    workdir: Path | str, step: int, *, share: tuple[int, int] = (0, 1)
) -> list[str]:
    """Describes what is wrong with the files of a checkpoint; empty if nothing is.

    Args:
      workdir: run folder.
      step: one of its finished steps.
      share: (i, n): check only the i-th of n parts of the files.

    Raises:
      CheckpointRemoved: it is no longer there.
    """
    folder = Path(workdir) / FOLDER / str(step)
    try:
        known = checksums.read(folder)
    except ValueError as error:
        return [str(error)]
    if not folder.is_dir():
        raise removed(workdir, step)
    if known is None and _had_checksums(folder):
        return [f"{checksums.FILE} is missing"]
    if known is None:
        logging.warning(
            "checkpoint %d was saved without checksums, by an older rfjax; its "
            "content cannot be verified",
            step,
        )
        return []
    return checksums.find_damage(folder, known, share=share)


def _had_checksums(folder: Path) -> bool:
    """Whether a checkpoint was saved by an rfjax that writes checksums."""
    try:
        metadata = (folder / "_CHECKPOINT_METADATA").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return StateHandler.__name__ in metadata
