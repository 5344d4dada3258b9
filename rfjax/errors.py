# SPDX-License-Identifier: Apache-2.0
"""Errors that are the user's to mend: the command line prints them as one line.

Anything else that is raised is a bug, and keeps its traceback. The classes also are
what Python would have raised, so `except ValueError` catches wrong values as ever.
"""


class UserError(ValueError):
    """Wrong input: its message names the field, the rule, the value and the remedy."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named is not there."""


class MissingPackageError(UserError, ImportError):
    """A package that the user's choice needs is not installed."""
