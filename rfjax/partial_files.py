# SPDX-License-Identifier: Apache-2.0
"""Names for files and folders that are not finished, and what becomes of them.

    .NAME.partial-HOST+NUMBER.SUFFIX       a file; NAME.SUFFIX is what it is to replace
    .NAME.partial-HOST+NUMBER/lock         a folder; its content is in NAME beside lock
    NAME/.NAME.partial-HOST+NUMBER/complete    the content while it is moved into NAME

Each is locked (flock) by the process that writes it. One that nobody holds was left by
a process that was killed, and the next writer of the same NAME removes it; or, if its
content was complete, finishes moving it. Not every shared file system shows the locks
of other hosts, so those of other hosts always stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

LONGEST_NAME = 220  # bytes; the system's limit is 255, and the names above are longer

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_LOCK = "lock"
_COMPLETE = "complete"

# What is being written, for a process that exits without leaving its blocks.
_unfinished: set[Path] = set()


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields an empty file to write, next to `path`, with its suffix.

    Folders above are made. The file is removed after the block unless it was renamed.
    """
    with _locked(path, is_folder=False) as partial:
        yield partial


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder called as `path` in a hidden one, next to or in `path`.

    Of a folder that is there its own file system is used: it may be a mount point.
    What the hidden folder holds is removed after the block, unless it was renamed.
    """
    place = path / path.name if path.is_dir() else path
    with _locked(place, is_folder=True) as partial:
        content = partial / path.name
        content.mkdir()
        yield content


def move_content(content: Path) -> None:
    """Moves the entries of a finished folder that `new_folder` made in its target.

    Files follow folders, because those that say what a folder holds are files. If the
    process is killed in between, the next writer goes on.
    """
    _move_entries(content.rename(content.parent / _COMPLETE))


def finish_moving(folder: Path) -> None:
    """Finishes a `move_content` of a folder in it that was cut short."""
    if (folder / _COMPLETE).is_dir():
        _move_entries(folder / _COMPLETE)


def clear_dead(path: Path) -> bool:
    """Removes what killed processes of this host left unfinished for a path.

    Returns:
      Whether a live process is writing something for the path, as far as locks tell.
    """
    has_writer = False
    for partial in _partials_of(path):
        try:
            with _taking(partial):
                _remove(partial)
        except BlockingIOError:
            has_writer = True
        except OSError:  # of another user, or there are no locks here
            continue
    return has_writer


def is_partial(name: str) -> bool:
    """Whether a file or folder of this name is unfinished, on whichever host."""
    return re.search(r"^\..*\.partial-[0-9a-f]{12}(\.|$)", name) is not None


def remove_unfinished() -> None:
    """Removes what this process has not finished writing, before an immediate exit."""
    for partial in list(_unfinished):
        _remove(partial)


@contextlib.contextmanager
def _locked(path: Path, *, is_folder: bool) -> Iterator[Path]:
    """A new file or folder beside a path, held by this process within the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_dead(path)
    partial, lock = _make(path, is_folder=is_folder)
    _unfinished.add(partial)
    try:
        yield partial
    finally:
        _remove(partial)
        if not partial.exists():  # a thread may still have written to it
            _unfinished.discard(partial)
        os.close(lock)


def _make(path: Path, *, is_folder: bool) -> tuple[Path, int]:
    """A new file or folder under an unused name, and the descriptor of its lock."""
    while True:
        number = secrets.token_hex(3)
        name = f".{path.stem}.partial-{_HOST}{number}{path.suffix}"
        partial = path.with_name(name)
        if is_folder:
            partial.mkdir()
        lock = partial / _LOCK if is_folder else partial
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        except FileNotFoundError:
            if not is_folder:
                raise
            continue  # `clear_dead` of another process came before the lock was made
        with contextlib.suppress(OSError):  # without locks, nothing passes for dead
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return partial, descriptor
        os.close(descriptor)  # as above


def _partials_of(path: Path) -> list[Path]:
    """Unfinished files and folders of this host for a path."""
    name = re.compile(
        rf"\.{re.escape(path.stem)}\.partial-{_HOST}[0-9a-f]{{6}}{re.escape(path.suffix)}"
    )
    try:
        names = os.listdir(path.parent)
    except OSError:  # absent, or not to be read
        return []
    return [path.parent / each for each in sorted(names) if name.fullmatch(each)]


@contextlib.contextmanager
def _taking(partial: Path) -> Iterator[None]:
    """Holds a partial file or folder that nobody holds; raises OSError otherwise."""
    try:
        lock = partial / _LOCK if partial.is_dir() else partial
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        partial.rmdir()  # empty: killed between making the folder and its lock
        raise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove(partial: Path) -> None:
    """Removes a partial file or folder; complete content is moved where it belongs."""
    if not partial.is_dir():
        partial.unlink(missing_ok=True)
        return
    finish_moving(partial)
    for entry in partial.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
    if os.listdir(partial) == [_LOCK]:  # else it is known as a leftover by its lock
        (partial / _LOCK).unlink()
        partial.rmdir()


def _move_entries(complete: Path) -> None:
    """Moves complete content from a partial folder in its target into that target."""
    target = complete.parent.parent
    for entry in sorted(complete.iterdir(), key=lambda e: (not e.is_dir(), e.name)):
        with contextlib.suppress(FileNotFoundError):  # moved by another process
            os.replace(entry, target / entry.name)
    with contextlib.suppress(FileNotFoundError):
        complete.rmdir()
