# SPDX-License-Identifier: Apache-2.0
"""Files by patterns, as shards have: part-*.parquet, {00000..00127}.tar."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from rfjax.errors import MissingFileError, UserError
from rfjax.packages import import_package


def find_files(patterns: Sequence[str], *, field: str) -> list[Path]:
    """The files that patterns name: in their order, and sorted within each.

    Args:
      patterns: paths; `*`, `?`, `[...]` and `**` match existing names, braces stand
        for all that they list. The name of an existing file stands for itself.
      field: that holds them, for errors.

    Raises:
      MissingFileError: a pattern stands for no file.
      MissingPackageError: a pattern has braces, and braceexpand is not installed.
    """
    if not patterns:
        raise UserError(f"{field} must name at least one file, got none; add one.")
    found: dict[Path, None] = {}
    for pattern in patterns:
        names = [pattern] if os.path.lexists(pattern) else _expand(pattern, field)
        for name in names:
            path = Path(name)
            if path.is_dir():
                raise UserError(
                    f"{field} must name files, got the folder {name}; write "
                    f"{name.rstrip('/')}/* for the files in it."
                )
            if not path.is_file():
                raise MissingFileError(
                    f"{field} must name files that exist, got {name}; correct it."
                )
            found[path] = None
    return list(found)


def _expand(pattern: str, field: str) -> list[str]:
    """Names that a pattern stands for; at least one for each alternative in braces."""
    names = []
    for alternative in _expand_braces(pattern, field):
        matches = [alternative]
        if glob.has_magic(alternative) and not os.path.lexists(alternative):
            matches = sorted(
                name
                for name in glob.glob(alternative, recursive=True)
                if not os.path.isdir(name)
            )
        if not matches:
            raise MissingFileError(
                f"{field} must name files that exist, got {alternative!r}, which "
                "matches none; correct it."
            )
        names += matches
    return names


def _expand_braces(pattern: str, field: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    braceexpand = import_package("braceexpand", use=f"braces in {field}")
    try:
        return list(braceexpand.braceexpand(pattern))
    except braceexpand.UnbalancedBracesError:
        raise UserError(
            f"{field} must have braces in pairs, got {pattern!r}; correct it."
        ) from None


def relative_names(paths: Sequence[Path]) -> list[str]:
    """Names of files that differ, seen from the nearest folder that holds them all.

    So keys stay when the whole is moved.
    """
    absolute = [os.path.abspath(path) for path in paths]
    start = os.path.commonpath([os.path.dirname(path) for path in absolute])
    names = [os.fsencode(os.path.relpath(path, start)) for path in absolute]
    return [name.decode(errors="backslashreplace") for name in names]
