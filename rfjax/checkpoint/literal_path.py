# SPDX-License-Identifier: Apache-2.0
"""Paths whose own characters are never a pattern, for orbax.

Orbax lists the parts of a checkpoint with `glob`, and etils' paths take the name of the
folder for a part of the pattern: in `run[v2]` nothing would be found, in `run*` also
what belongs to other runs.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

from etils import epath
from etils.epath import gpath


@epath.register_path_cls
class LiteralPath(gpath.PosixGPath):
    """A path that orbax and all that it derives from it keep as it is."""

    def glob(self, pattern: str) -> Iterator[LiteralPath]:
        """The entries of this folder that match a pattern."""
        for match in glob.iglob(pattern, root_dir=os.fspath(self)):
            yield self / match
