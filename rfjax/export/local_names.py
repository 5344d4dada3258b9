# SPDX-License-Identifier: Apache-2.0
"""What is published says nothing of the machine: of a local path its last name only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

# An absolute path within a text; that of a URL follows its colon.
_PATH = re.compile(r"(?<![\w:/.~-])~?/(?:[^/\s'\"]+/)+([^/\s'\"]+)")


def without_folders(value: Any) -> Any:
    """The value with every absolute path in it cut to its last name.

    Lists and mappings are searched too; paths that start at the current folder stay.

    Example:
      >>> without_folders({"path": "/home/ada/data/emoji", "out": "runs/emoji"})
      {'path': 'emoji', 'out': 'runs/emoji'}
    """
    if isinstance(value, Mapping):
        return {name: without_folders(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(entry) for entry in value]
    if not isinstance(value, str):
        return value
    windows = PureWindowsPath(value)
    if windows.is_absolute():
        return windows.name
    path = PurePosixPath(value)
    local = path.is_absolute() or ".." in path.parts or value.startswith(("~", "file:"))
    return path.name if local else _PATH.sub(r"\1", value)
