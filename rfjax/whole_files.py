# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear complete or not at all, even if the process is killed.

Every command calls a `check_` function here before it works: what can be refused is
refused then, in one line. Links are followed, and stay links. What is no regular file
(a device, a pipe, standard output) is written to, never replaced. What takes its name
is on the disk before, so that a power cut leaves no empty file in the place of a whole.

Nothing is ever removed here that was not written here: unfinished files get a name
that is otherwise unused, and a folder is replaced only if every file in it is known.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from rfjax import disk, partial_files
from rfjax.errors import UserError, needing_room

# In the folder of every new file system of some kinds.
_OF_THE_SYSTEM = ("lost+found",)
_LONGEST_PATH = 3000  # bytes; the system's limit is 4096, and folders get files
_OPEN_FILES = re.compile(r"/proc/(\d+)(/task/\d+)?/fd")


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yields a path to write to, whose file replaces that at `path` at the end.

    If the block raises, `path` stays as it was and nothing else is left. A link stays a
    link: the file it points to is replaced. What is not a regular file (a pipe,
    /dev/null, /dev/stdout even if it is redirected to a file) is written to at the end.

    Raises:
      StorageError: the disk is full, limited or broken.
    """
    path = Path(path)
    if _is_stream(path):
        # Pictures are in the format that their name ends with; here it may have none.
        name = path.name if path.suffix else f"{path.name}.png"
        folder = Path(tempfile.gettempdir())
        with partial_files.new_file(folder / name) as partial:
            with needing_room(name, folder):
                yield partial
            _send(partial, path)
        return
    path = _followed(path)
    with needing_room(path.name, path.parent), partial_files.new_file(path) as partial:
        yield partial
        disk.sync(partial)
        try:
            os.replace(partial, path)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # A file that is a mount point, as containers have, keeps its place.
            shutil.copyfile(partial, path)
            disk.sync(path)
        disk.sync(path.parent)


def write_text(path: Path | str, text: str) -> None:
    """Writes UTF-8 text."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes plain values as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def overwrite_json(path: Path | str, value: Any) -> bool:
    """Writes plain values into the disk blocks of an existing file, if they fit.

    A last resort on a full disk: unlike `write_json` it needs no further room.

    Returns:
      Whether they fit, and were written.
    """
    data = (json.dumps(value, indent=2) + "\n").encode()
    try:
        with open(path, "r+b", buffering=0) as file:
            status = os.fstat(file.fileno())
            # The end of a longer text is blanked: JSON allows it.
            data = data.ljust(status.st_size)
            if len(data) > status.st_blocks * 512:
                return False
            return file.write(data) == len(data)
    except OSError:
        return False


def read_json(path: Path | str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it holds anything else, or was cut short.
    """
    return parse_json(Path(path).read_bytes(), what=str(path))


def parse_json(text: bytes | str, *, what: str) -> dict[str, Any]:
    """The JSON object that a text is.

    Args:
      text: to parse; UTF-8.
      what: holds the text, for errors.

    Raises:
      UserError: it is anything else, or was cut short.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # not UTF-8 is a ValueError too
        raise UserError(
            f"{what} must be JSON, got {_beginning(text)} ({error}); restore it from a "
            "copy."
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f"{what} must hold a JSON object, got {_beginning(text)}; restore it from "
            "a copy."
        )
    return value


def _beginning(text: bytes | str) -> str:
    """The first characters of a text that is not what it should be."""
    if not text.strip():
        return "nothing"
    shown = text[:40].decode(errors="replace") if isinstance(text, bytes) else text[:40]
    return repr(shown) + ("..." if len(text) > len(shown) else "")


def check_writable(
    path: Path | str | None, *, field: str, suffixes: Collection[str] = ()
) -> None:
    """Raises UserError, before any work, if a file cannot be written at a path.

    Args:
      path: of the file; None is accepted, and so is anything that can be written to.
      field: what the user calls the path.
      suffixes: that its name may end with, in lower case; empty: any. A stream without
        an ending takes the first.
    """
    if path is None:
        return
    path = Path(path)
    _check_names(path, field=field)
    if str(path) == "-":
        raise UserError(
            f"{field} must be a file, got '-'; write /dev/stdout for standard output."
        )
    if not path.name or path.is_dir():
        raise UserError(f"{field} must be a file, got {str(path)!r}; name one in it.")
    is_stream = _is_stream(path)
    if suffixes and path.suffix.lower() not in suffixes:
        if path.suffix or not is_stream:
            raise UserError(
                f"{field} must end with {' or '.join(suffixes)}, got {path}; rename it."
            )
    if is_stream:
        _check_stream(path, field=field)
        return
    target = _followed(path)
    if target.is_symlink():
        raise UserError(f"{field} must be a file, got {path}, a link to itself.")
    if target.exists() and not os.access(target, os.W_OK):
        raise UserError(f"{field} must be writable, got {path}: permission denied.")
    _check_can_make(target, path, field=field)


def unused(path: Path | str) -> Path:
    """The path itself if it is unused, else with the first free number: a-2.png."""
    path, number = Path(path), 1
    chosen = path
    while os.path.lexists(chosen):
        number += 1
        chosen = path.with_stem(f"{path.stem}-{number}")
    return chosen


def check_free(path: Path | str, *, field: str, besides: Collection[str] = ()) -> None:
    """Raises UserError unless a folder can be made at `path`, or is there and empty.

    What a killed process left unfinished there is removed.

    Args:
      path: of the folder.
      field: what the user calls the path.
      besides: names of what it may hold.
    """
    target = _folder_at(path, field=field)
    if set(foreign(target)).difference(besides):
        _check_holds_only(target, (), path, field=field)
    _check_can_make(target, Path(path), field=field)


def check_replaceable(
    path: Path | str, *, files_of: Callable[[Path], Collection[str]], field: str
) -> Collection[str]:
    """As `check_free`, of a folder that an earlier call may have written.

    Args:
      path: absent, or a folder that holds nothing but such files.
      files_of: names of the files that an earlier call wrote, given the folder.
      field: what the user calls the path.

    Returns:
      The names of those files.
    """
    target = _folder_at(path, field=field)
    files = files_of(target)
    _check_holds_only(target, files, path, field=field)
    _check_can_make(target, Path(path), field=field)
    return files


def foreign(folder: Path, files: Collection[str] = ()) -> list[str]:
    """What others put into a folder: names of all but regular files in `files`.

    What is not finished, and what a new file system holds, is nobody's.
    """
    if not folder.is_dir():
        return []
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if not (entry.name in files and entry.is_file(follow_symlinks=False))
        and entry.name not in _OF_THE_SYSTEM
        and not partial_files.is_partial(entry.name)
    )


def check_not_around(path: Path | str, *, field: str) -> None:
    """Raises UserError if `path` is the current folder or one of its parents."""
    if Path(path).name in ("", "..") or Path.cwd().is_relative_to(_followed(path)):
        raise UserError(
            f"{field} must not be the current folder or one of its parents, got {path}"
            "; name its own folder."
        )


@contextlib.contextmanager
def new_folder(
    path: Path | str,
    *,
    replaces: Collection[str] = (),
    field: str = "out",
    num_bytes: int | None = None,
) -> Iterator[Path]:
    """Yields a folder to fill, of the name of `path`, that takes its place at the end.

    A folder that exists is filled in place, since it may be a mount point, and what may
    be written to may be it alone: its files come from a hidden folder in it, and files
    that say what it holds come last. If the block raises, nothing is left.

    Args:
      path: folder to make. It must be absent, an empty folder, or a folder of the files
        `replaces`, of which none stays.
      replaces: names of files that an earlier call wrote.
      field: what the user calls the path.
      num_bytes: that the folder takes, for the error if there is no room.

    Raises:
      UserError: the folder holds anything else, or came to hold what a new file would
        replace; it stays as it is.
      StorageError: the disk is full, limited or broken.
      OSError: files were put into a folder that was absent before; they stay.
    """
    target = _folder_at(path, field=field)
    _check_holds_only(target, replaces, path, field=field)
    is_there = target.is_dir()
    place = target if is_there else target.parent
    room = needing_room(target.name, place, num_bytes=num_bytes)
    with room, partial_files.new_folder(target) as content:
        yield content
        disk.sync_tree(content)
        if not is_there:
            os.replace(content, target)
            disk.sync(target.parent)
            return
        new = set(os.listdir(content))
        if replaces:
            _check_holds_only(target, replaces, path, field=field)
        elif taken := sorted(new.intersection(foreign(target))):
            # Any other file may have come: hours of work go beside it.
            raise UserError(
                f"{field} {_shown(path)} came to hold {_listed(taken)} of another; "
                "choose another folder. Nothing was changed."
            )
        for name in set(replaces) - new:
            (target / name).unlink(missing_ok=True)
        partial_files.move_content(content)
        disk.sync(target)


def _followed(path: Path | str) -> Path:
    """The path behind all links, whether or not anything is there."""
    return Path(os.path.realpath(path))


def _shown(path: Path | str) -> str:
    """The path as given, with the target if it is a link."""
    link = Path(path).is_symlink()
    return f"{path}, a link to {_followed(path)}," if link else str(path)


def _listed(names: Collection[str]) -> str:
    """The first of some names."""
    names = list(names)
    return f"{', '.join(names[:3])}{', ...' if names[3:] else ''}"


def _folder_at(path: Path | str, *, field: str) -> Path:
    """Where a folder is to be, behind links; nobody else may be writing it."""
    _check_names(path, field=field)
    check_not_around(path, field=field)
    target = _followed(path)
    if os.path.lexists(target) and not target.is_dir():
        what = "a link to itself" if target.is_symlink() else "which is none"
        raise UserError(
            f"{field} must be a new or empty folder, got {path}, {what}; name another."
        )
    # What a killed process left may be in the folder, or where it was to be.
    if any([partial_files.clear_dead(p) for p in (target, target / target.name)]):
        raise UserError(
            f"{field} must not be in use, got {path}, which another process is writing "
            "now; wait for it to end, or name another."
        )
    return target


def _check_holds_only(
    folder: Path, files: Collection[str], path: Path | str, *, field: str
) -> None:
    """Raises UserError if a folder, which the user knows as `path`, holds others."""
    held = foreign(folder, files)
    if held and files:
        raise UserError(
            f"{field} {_shown(path)} exists and holds files that no earlier report "
            f"wrote ({_listed(held)}); choose another folder. Nothing was changed."
        )
    if held:
        raise UserError(
            f"{field} must be a new or empty folder, got {_shown(path)} with "
            f"{_listed(held)}; choose another name, or delete it."
        )


def _check_names(path: Path | str, *, field: str) -> None:
    """Raises UserError if a path is too long for unfinished files beside it."""
    target = _followed(path)
    limits = [("a path", str(target), _LONGEST_PATH)]
    for each in (target, *target.parents):
        if not os.path.lexists(each):
            limits.append(("names", each.name, partial_files.LONGEST_NAME))
    for what, name, limit in limits:
        if (size := len(os.fsencode(name))) > limit:
            raise UserError(
                f"{field} must have {what} of at most {limit} bytes, got "
                f"{name[:20]}... of {size}; shorten it."
            )


def _check_can_make(target: Path, path: Path, *, field: str) -> None:
    """Raises UserError unless a file or folder can be made at `target`.

    Args:
      target: where the user's `path` leads.
      path: for messages.
      field: what the user calls the path.
    """
    above = target if target.is_dir() else target.parent
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise UserError(f"{field} must be in a folder, got {path}: {above} is none.")
    try:
        # Permissions, read-only disks and /proc each have their own rules: try it.
        # Under a name of its own, or others who try it now would take it for a writer.
        with partial_files.new_file(above / f"{target.name}.trial"):
            pass
    except OSError as error:
        raise UserError(
            f"{field} must be where files can be made, got {path}: {error.strerror} "
            f"in {above}; choose another folder, or change that."
        ) from error


def _is_stream(path: Path) -> bool:
    """Whether a path is to be written to as it is: no regular file, or an open one."""
    is_special = path.exists() and not path.is_file() and not path.is_dir()
    return is_special or _open_file(path) is not None


def _open_file(path: Path) -> tuple[int, int] | None:
    """(process, descriptor) if a path names an open file, as /dev/stdout does."""
    for _ in range(40):  # links that the system follows, at most
        folder = re.fullmatch(_OPEN_FILES, os.path.realpath(path.parent))
        if folder and path.name.isdecimal():
            return int(folder[1]), int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / os.readlink(path)
    return None


def _check_stream(path: Path, *, field: str) -> None:
    """Raises UserError unless something can be written to a stream."""
    process, number = _open_file(path) or (0, -1)
    try:
        if process == os.getpid():
            # The files that this process opened itself are not the user's.
            mode = os.fstat(number).st_mode if os.get_inheritable(number) else 0
            access = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
            can_write = stat.S_IFMT(mode) and access != os.O_RDONLY
            is_socket = False
        else:
            mode = path.stat().st_mode
            can_write = os.access(path, os.W_OK)
            is_socket = stat.S_ISSOCK(mode)
    except OSError:
        raise UserError(
            f"{field} must be an open file, got {path}, which is none; name a file."
        ) from None
    if stat.S_ISBLK(mode) or is_socket:
        what = "a socket" if is_socket else "a disk"
        raise UserError(f"{field} must be a file, got {path}, {what}; name a file.")
    if not can_write or stat.S_ISDIR(mode):
        raise UserError(
            f"{field} must be open for writing, got {path}, which is not; name a file."
        )


def _send(source: Path, path: Path) -> None:
    """Writes the bytes of a file to a stream, after all that was written before."""
    process, number = _open_file(path) or (0, -1)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if process == os.getpid():
        target = os.dup(number)  # opened again, it would begin at the start of the file
    else:
        target = os.open(path, os.O_WRONLY | os.O_APPEND)
    with open(target, "wb") as out, source.open("rb") as written:
        shutil.copyfileobj(written, out)
