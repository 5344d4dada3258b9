# SPDX-License-Identifier: Apache-2.0
"""Whether all processes of a job do the same, in the same folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rfjax import partial_files
from rfjax.errors import UserError

# Seconds that a shared file system may take to show a file to other machines.
APPEAR_SECONDS = 5.0

_SHOWN = 5  # differences in one message


def check_same(values: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError, the same in every process, if a field differs between them.

    Args:
      values: field -> value, of each process; values that JSON can hold.
    """
    differences = []
    for field in sorted(set().union(*values)):
        held: dict[str, list[int]] = {}
        for index, fields in enumerate(values):
            held.setdefault(repr(fields.get(field)), []).append(index)
        if len(held) > 1:
            found = ", ".join(
                f"{value} in {_name(indices)}" for value, indices in held.items()
            )
            differences.append(f"{field}: {found}")
    if differences:
        shown = "; ".join(differences[:_SHOWN])
        more = len(differences) - _SHOWN
        raise UserError(
            "all processes of a job must be given the same, and differ in "
            f"{shown}{f'; and {more} more' if more > 0 else ''}; start all of them "
            "with the same command line, versions and data."
        )


def check_shared(
    folder: Path, *, share: Callable[[Any], Sequence[Any]], field: str
) -> None:
    """Raises UserError, the same in every process, if they see different folders.

    Each process leaves a file for the others to find, in the folder or, if that is
    missing, in the lowest folder above it that is there.

    Args:
      folder: as this process names it; may be missing.
      share: a value of this process -> those of all.
      field: what the user calls the folder.
    """
    folder = folder.absolute()
    above = next(each for each in (folder, *folder.parents) if each.is_dir())
    with partial_files.new_file(above / "shared") as own:
        tokens = share([str(folder), folder.relative_to(above).parts, own.name])
        unseen = share([
            index
            for index, (_, missing, name) in enumerate(tokens)
            if not _sees(folder, missing, name)
        ])  # fmt: skip
    apart = [(reader, written[0]) for reader, written in enumerate(unseen) if written]
    if apart:
        reader, writer = apart[0]
        raise UserError(
            f"{field} must be one folder that all processes share, and process "
            f"{reader} ({tokens[reader][0]}) does not see what process {writer} writes "
            f"({tokens[writer][0]}); name a folder on a disk that all of them share."
        )


def _sees(folder: Path, missing: Sequence[str], name: str) -> bool:
    """Whether a file is where another process left it, as many levels above."""
    if missing and folder.parts[-len(missing) :] != tuple(missing):
        return False
    above = folder.parents[len(missing) - 1] if missing else folder
    end = time.monotonic() + APPEAR_SECONDS
    while not (above / name).exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _name(indices: Sequence[int]) -> str:
    """As "process 1" or "processes 1, 2, ..."."""
    if len(indices) == 1:
        return f"process {indices[0]}"
    shown = ", ".join(map(str, indices[:_SHOWN]))
    return f"processes {shown}{', ...' if indices[_SHOWN:] else ''}"
