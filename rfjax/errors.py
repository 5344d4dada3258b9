# SPDX-License-Identifier: Apache-2.0
"""Errors that the user can fix: the command line prints them as one line.

Anything else that is raised is a bug, and keeps its traceback. Each class also
derives from the exception that Python would raise, so `except ValueError` still
catches wrong values.
"""

import errno

# Refusals of the operating system that only the user can fix.
REFUSALS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT,
    errno.ENOTDIR, errno.EISDIR, errno.EPIPE, errno.EEXIST,
}  # fmt: skip


class UserError(ValueError):
    """Wrong input: its message names the field, the rule, the value and the remedy."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named is not there."""


class MissingPackageError(UserError, ImportError):
    """A package that the user's choice needs is not installed."""


def describe_refusal(error: Exception) -> str | None:
    """What the system refused, and for which file; None if the error is another."""
    if not isinstance(error, OSError) or error.errno not in REFUSALS:
        return None
    paths = [str(path) for path in (error.filename, error.filename2) if path]
    return f"{error.strerror}: {' -> '.join(paths)}" if paths else str(error)
