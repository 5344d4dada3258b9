# SPDX-License-Identifier: Apache-2.0
"""Orbax's handler of the train state, with a checksum of every file it writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp


class StateHandler(ocp.StandardCheckpointHandler):
    """Orbax's handler, which also hashes each file before the checkpoint is complete.

    Every process hashes the files it wrote itself, in the thread that wrote them. The
    name of this class is in the metadata of a checkpoint and marks it as one that has
    checksums.

    Attributes:
      step_folder: folder of the checkpoint that is being written.
    """

    def __init__(self, hash_files: Callable[[Path], None]):
        """`hash_files` is called with the folder of the state once it is written."""
        super().__init__()
        self.step_folder = Path()
        self._hash_files = hash_files

    async def async_save(
        self, directory: Any, *args: Any, **kwargs: Any
    ) -> list[ocp.future.Future]:
        """Starts the save; the last future completes when the files are hashed."""
        futures = await super().async_save(directory, *args, **kwargs)
        folder = Path(getattr(directory, "path", directory))
        self.step_folder = folder.parent
        return [ocp.future.ChainedFuture(futures, cb=lambda: self._hash_files(folder))]


@ocp.args.register_with_handler(StateHandler, for_save=True)
@dataclasses.dataclass
class StateSave(ocp.args.StandardSave):
    """What `StateHandler` saves."""


@ocp.args.register_with_handler(StateHandler, for_restore=True)
@dataclasses.dataclass
class StateRestore(ocp.args.StandardRestore):
    """What `StateHandler` restores."""
