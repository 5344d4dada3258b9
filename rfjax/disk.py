# SPDX-License-Identifier: Apache-2.0
"""Waits until files are on the disk, so that not even a power cut takes them back.

A name that is on the disk before its content would be an empty file afterwards.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path


def sync(path: Path) -> None:
    """Waits for a file, or for the names in a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # it may be written, but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot do it for a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits for a folder and everything below it; links are not followed."""
    for above, _, names in os.walk(folder):
        for name in names:
            if not os.path.islink(path := Path(above, name)):
                sync(path)
        sync(Path(above))


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, where missing, and waits for their names.

    A link to a folder that is missing stays one: its target is made.
    """
    if ".." not in path.parts:  # what stands before one must be there as well
        path = Path(os.path.realpath(path))
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync(each.parent)
