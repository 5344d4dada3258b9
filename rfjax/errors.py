# SPDX-License-Identifier: Apache-2.0
"""Errors that the user can fix: the command line prints them as one line.

Anything else that is raised is a bug, and keeps its traceback. Each class also
derives from the exception that Python would raise, so `except ValueError` still
catches wrong values.

Libraries report a full disk in their own ways: Python by the number of an OSError,
those in C++ and Rust by the words of the system inside other errors. Within a block of
`needing_room` all of them become `StorageError`.
"""

import contextlib
import errno
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

# Refusals of the operating system that only the user can fix.
REFUSALS = {
    errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EPIPE, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip

# Refusals of the disk -> what to do.
NO_ROOM = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EFBIG: "raise the limit (ulimit -f)",
}
NO_WRITES = {
    errno.EROFS: "make it writable",
    errno.EIO: "see whether the disk or its connection is broken",
    errno.ESTALE: "mount the network folder again",
}


class UserError(ValueError):
    """Wrong input: its message names the field, the rule, the value and the remedy.

    Attributes:
      exit_status: of the command that it ends.
    """

    exit_status = 1


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named is not there."""


class MissingPackageError(UserError, ImportError):
    """A package that the user's choice needs is not installed."""


class StorageError(UserError, OSError):
    """The disk is full, limited or broken: its message says for what, and where."""


@contextlib.contextmanager
def needing_room(
    what: str, folder: Path | str, *, num_bytes: int | None = None
) -> Iterator[None]:
    """Within the block, what the disk refuses is a `StorageError`.

    The free room in its message is that after the block: blocks inside of it, as
    those of `rfjax.whole_files`, remove what they have half written first.

    Args:
      what: is written, in words, as "checkpoint 40".
      folder: where; it may not exist yet.
      num_bytes: that it takes, if that is known.

    Raises:
      StorageError: from whatever a library made of the refusal.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        number = refusal_of_disk(error)
        if number is None:
            raise
        message = _describe(number, what, folder=Path(folder), num_bytes=num_bytes)
        raise StorageError(message) from error


def refusal_of_disk(error: BaseException | None) -> int | None:
    """The system's number of what the disk refused; None if an error has another cause.

    Args:
      error: as any library raises it.
    """
    while error is not None:
        for number in (*NO_ROOM, *NO_WRITES):
            if isinstance(error, OSError) and error.errno == number:
                return number
            if os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


def describe_refusal(error: Exception) -> str | None:
    """What the system refused, and for which file; None if the error is another."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or text.startswith("RESOURCE_EXHAUSTED"):
        return (
            f"the memory must hold what is computed, got: {text}; choose a smaller "
            "model, batch_size or global_batch_size, or split it with mesh.fsdp."
        )
    number = refusal_of_disk(error)
    name = getattr(error, "filename", None)
    if number is not None and isinstance(name, str):
        return _describe(number, Path(name).name, folder=Path(name).parent)
    if number is not None:
        return (
            f"{text}; {(NO_ROOM | NO_WRITES)[number]}, and run the same command again."
        )
    if not isinstance(error, OSError) or error.errno not in REFUSALS:
        return None
    paths = [str(path) for path in (error.filename, error.filename2) if path]
    return f"{error.strerror}: {' -> '.join(paths)}" if paths else str(error)


def format_bytes(num_bytes: int) -> str:
    """A size for people: 512 bytes, 16.4 MB."""
    for name, unit in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes} bytes"


def _describe(
    number: int, what: str, *, folder: Path, num_bytes: int | None = None
) -> str:
    """Where, what must be possible there, what the disk says, and the remedy."""
    refusal, rule = os.strerror(number), "have room"
    if number in NO_WRITES:
        rule = "be writable"
    elif number == errno.ENOSPC:
        refusal = f"{format_bytes(_free_bytes(folder))} ({refusal})"
    elif number == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY:
            refusal = f"files of up to {format_bytes(limit)} ({refusal})"
    size = "" if num_bytes is None else f" ({format_bytes(num_bytes)})"
    return (
        f"{folder} must {rule} for {what}{size}, got {refusal}; "
        f"{(NO_ROOM | NO_WRITES)[number]}, and run the same command again."
    )


def _free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, or of the nearest one above it that exists."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free
