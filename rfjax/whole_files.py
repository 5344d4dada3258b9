# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are there whole or not at all, whatever kills the process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Gives a name to write to, beside `path`, whose file takes its place at the end.

    If the block raises, what was at `path` stays, and nothing else is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Ends like the file itself: writers of pictures choose the format by it.
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes UTF-8 text."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes plain values as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def check_free(path: Path | str, *, field: str) -> None:
    """Raises ValueError unless `path` is absent or an empty folder; names the field."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            f"{field} must be a new or empty folder, got {path}; choose another name, "
            "or delete it."
        )


@contextlib.contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """Gives a folder to fill, beside `path`, that takes its name at the end.

    If the block raises, nothing of it is left. What is at `path` by the end must be an
    empty folder (OSError otherwise): nothing is deleted here.
    """
    path = Path(path).absolute()
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
