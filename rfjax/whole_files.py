# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear complete or not at all, even if the process is killed.

Nothing is ever removed here that was not written here: unfinished files get a name
that is otherwise unused, and a folder is replaced only if every file in it is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from rfjax.errors import UserError, needing_room

# What is being written, for a process that exits without leaving its blocks.
_unfinished: set[Path] = set()


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yields a path to write to, next to `path`, whose file replaces it at the end.

    If the block raises, `path` stays as it was and nothing else is left. A link stays a
    link: the file it points to is replaced. What is not a regular file (a pipe,
    /dev/null) is written to directly.

    Raises:
      StorageError: the disk is full, limited or broken.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    if path.is_symlink():
        path = path.resolve()
    # Has the suffix of the file, by which writers of pictures choose their format.
    partial = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    with needing_room(path.name, path.parent), _removing(partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)


def write_text(path: Path | str, text: str) -> None:
    """Writes UTF-8 text."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes plain values as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path | str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it holds anything else, or was cut short.
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path} must be JSON, got a file that is not, or is cut short ({error}); "
            "restore it from a copy."
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f"{path} must hold a JSON object, got {type(value).__name__}; restore it "
            "from a copy."
        )
    return value


def check_writable(
    path: Path | str | None, *, field: str, suffixes: Collection[str] = ()
) -> None:
    """Raises UserError, before any work, if a file cannot be written at a path.

    Args:
      path: of the file; None is accepted.
      field: what the user calls the path.
      suffixes: that its name may end with, in lower case; empty: any.
    """
    if path is None:
        return
    path = Path(path)
    if not path.name or path.is_dir():
        raise UserError(f"{field} must be a file, got {str(path)!r}; name one in it.")
    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(
            f"{field} must end with {' or '.join(suffixes)}, got {path}; rename it."
        )
    above = next(each for each in (*path.parents, Path(".")) if each.exists())
    if not above.is_dir():
        raise UserError(f"{field} must be in a folder, got {path}: {above} is a file.")
    if not os.access(path if path.exists() else above, os.W_OK):
        raise UserError(f"{field} must be writable, got {path}: permission denied.")


def unused(path: Path | str) -> Path:
    """The path itself if it is unused, else with the first free number: a-2.png."""
    path, number = Path(path), 1
    chosen = path
    while os.path.lexists(chosen):
        number += 1
        chosen = path.with_stem(f"{path.stem}-{number}")
    return chosen


def check_free(path: Path | str, *, field: str) -> None:
    """Raises UserError unless `path` is absent or an empty folder."""
    path = Path(path)
    check_not_around(path, field=field)
    if path.is_symlink():
        raise UserError(
            f"{field} must be a new or empty folder, got {path}, a link to "
            f"{os.readlink(path)}; name the folder itself, or another."
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(
            f"{field} must be a new or empty folder, got {path}; choose another name, "
            "or delete it."
        )


def check_not_around(path: Path | str, *, field: str) -> None:
    """Raises UserError if `path` is the current folder or one of its parents."""
    if Path(path).name in ("", "..") or Path.cwd().is_relative_to(Path(path).resolve()):
        raise UserError(
            f"{field} must not be the current folder or one of its parents, got {path}"
            "; name its own folder."
        )


def check_replaceable(path: Path | str, *, files: Collection[str], field: str) -> None:
    """Raises UserError unless a folder may be replaced, naming what prevents it.

    Args:
      path: absent, or a folder that holds nothing but regular files named in `files`.
      files: names of files that an earlier call wrote there.
      field: what the user calls the path.
    """
    path = Path(path)
    check_not_around(path, field=field)
    if path.is_symlink():
        raise UserError(
            f"{field} must be a folder, got {path}, a link to {os.readlink(path)}; "
            "name the folder itself, or another."
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"{field} must be a folder, got the file {path}.")
    _refuse_foreign(path, path, files=files, field=field)


def _refuse_foreign(
    folder: Path, path: Path, *, files: Collection[str], field: str
) -> None:
    """Raises UserError if a folder, which the user knows as `path`, holds others."""
    foreign = _foreign(folder, files)
    if foreign:
        raise UserError(
            f"{field} {path} exists and holds files that no earlier report wrote "
            f"({', '.join(foreign[:3])}{', ...' if foreign[3:] else ''}); choose "
            "another folder. Nothing was changed."
        )


@contextlib.contextmanager
def new_folder(
    path: Path | str,
    *,
    replaces: Collection[str] = (),
    field: str = "out",
    num_bytes: int | None = None,
) -> Iterator[Path]:
    """Yields a folder to fill, next to `path`, that takes its name at the end.

    If the block raises, nothing of it is left.

    Args:
      path: folder to make. When the block ends, it must be absent, an empty folder
        (OSError otherwise), or a folder of the files `replaces`, which are removed.
      replaces: names of files that an earlier call wrote.
      field: what the user calls the path.
      num_bytes: that the folder takes, for the error if there is no room.

    Raises:
      UserError: the folder to replace holds anything else; it stays as it is.
      StorageError: the disk is full, limited or broken.
    """
    path = Path(path).parent.resolve() / Path(path).name
    partial = _beside(path, "partial")
    room = needing_room(path.name, path.parent, num_bytes=num_bytes)
    with room, _removing(partial):
        partial.mkdir(parents=True)
        yield partial
        if replaces and path.exists():
            _replace_folder(path, partial, files=replaces, field=field)
        else:
            os.replace(partial, path)


def remove_unfinished() -> None:
    """Removes what this process has not finished writing, before an immediate exit."""
    for partial in list(_unfinished):
        _remove(partial)


@contextlib.contextmanager
def _removing(partial: Path) -> Iterator[None]:
    """Removes a file or folder of ours, if it still exists after the block."""
    _unfinished.add(partial)
    try:
        yield
    finally:
        _remove(partial)
        if not partial.exists():  # a thread may still have written to it
            _unfinished.discard(partial)


def _remove(partial: Path) -> None:
    """Removes a file or a folder that this process wrote."""
    if partial.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)


def _replace_folder(
    path: Path, new: Path, *, files: Collection[str], field: str
) -> None:
    """Puts a folder in the place of one that holds nothing but `files`."""
    old = _beside(path, "replaced")
    try:
        os.rename(path, old)
        # Checked under a name that no other process adds files to.
        _refuse_foreign(old, path, files=files, field=field)
        os.rename(new, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.rename(old, path)
        raise
    for entry in sorted(old.iterdir()):
        entry.unlink()
    old.rmdir()


def _foreign(folder: Path, files: Collection[str]) -> list[str]:
    """Names in a folder other than those of regular files in `files`."""
    if not folder.is_dir():
        return []
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name not in files or not entry.is_file(follow_symlinks=False)
    )


def _beside(path: Path, what: str) -> Path:
    """An unused name in the same folder."""
    return path.with_name(f".{path.name}.{what}-{secrets.token_hex(4)}")
