# SPDX-License-Identifier: Apache-2.0
"""Orbax's handler of the train state, with a checksum of every file it writes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from rfjax.checkpoint import lazy_arrays

_LEAST_PART = 2**20  # bytes that a device writes of an array it shares with others


class StateHandler(ocp.StandardCheckpointHandler):
    """Orbax's handler, which also hashes each file before the checkpoint is complete.

    Every process hashes the files it wrote itself, in the thread that wrote them. The
    name of this class is in the metadata of a checkpoint and marks it as one that has
    checksums.

    Attributes:
      step_folder: folder of the checkpoint that is being written.
      failure: what went wrong in the save, known before orbax reports it: with several
        processes it waits for all of them first, for minutes.
    """

    def __init__(self, hash_files: Callable[[Path], None]):
        """`hash_files` is called with the folder of the state once it is written."""
        super().__init__()
        self._impl = ocp.PyTreeCheckpointHandler(type_handler_registry=_types())
        self.step_folder = Path()
        self.failure: BaseException | None = None
        self._hash_files = hash_files

    async def async_save(
        self, directory: Any, *args: Any, **kwargs: Any
    ) -> list[ocp.future.Future]:
        """Starts the save; the last future completes when the files are hashed."""
        item = kwargs["args"].item
        if lazy_arrays.is_lazy(item):
            futures = await lazy_arrays.handler().async_save(
                directory, args=ocp.args.PyTreeSave(item)
            )
        else:
            futures = await super().async_save(directory, *args, **kwargs)
        folder = Path(getattr(directory, "path", directory))
        self.step_folder = folder.parent
        written = ocp.future.ChainedFuture(futures, cb=lambda: self._hash_files(folder))
        return [_Watched(written, self)]

    def finalize(self, directory: Any) -> None:
        """Completes the files of all processes, in the first of them."""
        with self.noting_failure():
            super().finalize(directory)

    @contextlib.contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Remembers what is raised in the block."""
        try:
            yield
        except BaseException as error:
            self.failure = error
            raise


def _types() -> ocp.type_handlers.TypeHandlerRegistry:
    """How orbax writes leaves: as it always does, but for small arrays.

    An array that several devices hold is written in parts, by all of them. Cutting the
    parts is a program for each shape and device, and of a small array compiling those
    takes far longer than writing it.
    """
    defaults = (int, float, np.ndarray)
    arrays = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=_LEAST_PART
    )
    return ocp.type_handlers.create_type_handler_registry(
        *((kind, ocp.type_handlers.get_type_handler(kind)) for kind in defaults),
        (jax.Array, arrays),
    )


@dataclasses.dataclass
class _Watched:
    """A future of orbax that tells its handler when it fails."""

    future: ocp.future.Future
    handler: StateHandler

    def result(self, timeout: float | None = None) -> Any:
        """Waits for the result."""
        with self.handler.noting_failure():
            return self.future.result(timeout)

    def cancel(self) -> None:
        """Cancels the future."""
        self.future.cancel()


@ocp.args.register_with_handler(StateHandler, for_save=True)
@dataclasses.dataclass
class StateSave(ocp.args.StandardSave):
    """What `StateHandler` saves."""


@ocp.args.register_with_handler(StateHandler, for_restore=True)
@dataclasses.dataclass
class StateRestore(ocp.args.StandardRestore):
    """What `StateHandler` restores."""
