# SPDX-License-Identifier: Apache-2.0
"""Packages that only some sources need, imported when one of them is made."""

from __future__ import annotations

import importlib
import types

from rfjax.errors import MissingPackageError


def import_package(name: str, *, use: str, extra: str = "encode") -> types.ModuleType:
    """A module of a package that may not be installed.

    Args:
      name: of the module, with dots.
      use: what needs it, in words, as "the emoji data sets".
      extra: of rfjax that installs it.

    Raises:
      MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0].replace("_", "-")
        raise MissingPackageError(
            f"{use} need the package {package}, which is not installed; install it "
            f'with `pip install "rfjax[{extra}]"`.'
        ) from error
