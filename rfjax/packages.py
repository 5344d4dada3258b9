# SPDX-License-Identifier: Apache-2.0
"""Packages that not every installation has, imported when they are used."""

from __future__ import annotations

import importlib
import types

from rfjax.errors import MissingPackageError


def import_package(name: str, *, use: str, extra: str = "encode") -> types.ModuleType:
    """A module of a package that may not be installed.

    Args:
      name: of the module, with dots.
      use: what it is for, in words, as "the emoji data sets".
      extra: of rfjax that installs it.

    Raises:
      MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0].replace("_", "-")
        raise MissingPackageError(
            f"{package} must be installed for {use}, and is not; install it with "
            f'`pip install "rfjax[{extra}]"`.'
        ) from error
