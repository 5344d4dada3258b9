# SPDX-License-Identifier: Apache-2.0
"""Arrays that are made only when a checkpoint is written, one at a time.

A state of them is saved in the memory of its largest array.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array that is made when it is written, and not kept.

    Attributes:
      shape: of the array.
      dtype: of the array.
      make: () -> the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


# Chunks are copied and compressed one by one; without them, whole arrays are.
IN_CHUNKS = ocp.SaveArgs(chunk_byte_size=2**25)


class _LazyArrayHandler(ocp.type_handlers.NumpyHandler):
    """Writes what orbax writes of numpy arrays, but makes and writes one at a time."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(
        self,
        values: Sequence[LazyArray],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> list[ocp.future.Future]:
        """Starts to write; the future completes when all are written."""

        async def write() -> None:
            """Writes them in a thread of the future's own."""
            for value, info in zip(values, infos, strict=True):
                await self._background_serialize([value.make()], [info], [IN_CHUNKS])

        return [
            ocp.future.CommitFutureAwaitingContractedSignals(
                write(), name="lazy_arrays"
            )
        ]


def is_lazy(tree: Any) -> bool:
    """Whether the leaves of a tree are lazy arrays."""
    return any(isinstance(leaf, LazyArray) for leaf in jax.tree.leaves(tree))


def handler() -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler of a tree, for trees of nothing but lazy arrays."""
    types = [
        (LazyArray, _LazyArrayHandler()),
        (jax.Array, ocp.type_handlers.get_type_handler(jax.Array)),  # else it warns
    ]
    return ocp.PyTreeCheckpointHandler(
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(*types)
    )
