# SPDX-License-Identifier: Apache-2.0
"""Removes old checkpoints, and what killed saves and removals left.

A checkpoint is renamed before its files go, so that what has the name of a step is
always whole. One that is being read stays until the next time, one that holds files of
others for good.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path

from absl import logging

from rfjax import checksums, disk, partial_files
from rfjax.checkpoint.pins import unless_pinned
from rfjax.checkpoint.steps import FOLDER, KEPT_FILE, finished_steps

# Files that orbax writes or alters after the checksums: none of them holds a value.
WRITTEN_LAST = (
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
    checksums.FILE,
    KEPT_FILE,
)

_UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp")
_BEING_REMOVED = re.compile(r"\.\d+\.removed-[0-9a-f]{8}")


def remove_old(workdir: Path, *, steps: Collection[int]) -> None:
    """Removes checkpoints of a run, unless they are read or hold files of others.

    Args:
      workdir: run folder, in which no other process trains.
      steps: of the checkpoints.
    """
    folder = workdir / FOLDER
    try:
        for step in steps:
            path = folder / str(step)
            is_kept = not path.is_dir() or (path / KEPT_FILE).exists()
            if is_kept or _holds_foreign_files(path):
                continue
            with unless_pinned(path) as is_free:
                if is_free:
                    path.rename(folder / f".{step}.removed-{secrets.token_hex(4)}")
        _remove_renamed(folder)
    except OSError as error:
        logging.warning("old checkpoints stay in %s: %s", folder, error)


def mark_kept(workdir: Path, steps: Collection[int]) -> None:
    """Lets checkpoints stay for good, whatever later calls are told to keep."""
    for step in finished_steps(workdir):
        if step in steps:
            (workdir / FOLDER / str(step) / KEPT_FILE).touch()


def _remove_renamed(folder: Path) -> None:
    """Removes the files of checkpoints that have lost their name already."""
    for entry in folder.iterdir():
        if _BEING_REMOVED.fullmatch(entry.name):
            shutil.rmtree(entry, ignore_errors=True)


def remove_leftovers(workdir: Path) -> None:
    """Removes what a killed process left; sets aside saves that hold other files.

    Args:
      workdir: run folder, in which no other process trains.
    """
    folder = workdir / FOLDER
    if not folder.is_dir():
        return
    _remove_renamed(folder)
    for entry in folder.iterdir():
        if partial_files.is_partial(entry.name):  # of a branch
            partial_files.clear_dead(folder / entry.name[1:].split(".partial-")[0])
    own = ("state", "data", *WRITTEN_LAST)
    for entry in sorted(folder.iterdir()):
        if not (_UNFINISHED.fullmatch(entry.name) and entry.is_dir()):
            continue
        if all(content.name.startswith(own) for content in entry.iterdir()):
            shutil.rmtree(entry)
            continue
        aside = entry.with_name(f"{entry.name}.kept-{secrets.token_hex(4)}")
        entry.rename(aside)
        logging.warning("%s holds other files, kept as %s", entry, aside.name)


def make_durable(workdir: Path) -> None:
    """Waits until the newest checkpoint is on the disk under its name.

    The rest of its files was there before it took the name.
    """
    for step in finished_steps(workdir)[-1:]:
        folder = workdir / FOLDER / str(step)
        for path in (*(folder / name for name in WRITTEN_LAST), folder):
            if path.exists():
                disk.sync(path)
    disk.sync(workdir / FOLDER)


def _holds_foreign_files(folder: Path) -> bool:
    """Whether a checkpoint holds files that no save wrote."""
    try:
        known = checksums.read(folder)
    except ValueError:
        return True
    if known is None:  # saved by an older rfjax, or not by rfjax at all
        own = {"state", "data", *WRITTEN_LAST}
        names = {entry.name for entry in folder.iterdir()}
        return "_CHECKPOINT_METADATA" not in names or not names <= own
    return bool(checksums.foreign_files(folder, {*known, *WRITTEN_LAST}))
