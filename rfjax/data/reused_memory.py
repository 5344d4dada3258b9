# SPDX-License-Identifier: Apache-2.0
"""Arrays for batches, in memory that is used again.

Memory that is new to a process has to be cleared by the kernel first, which takes as
long as writing a batch into it. malloc gives large arrays back too soon, those of
threads before all.
"""

from __future__ import annotations

import collections
import math
import weakref
from typing import Any

import numpy as np


class ReusedMemory:
    """Gives out arrays; may be used by several threads.

    The memory of an array is given out again when neither it nor any view of it is
    referred to. What is kept is therefore the most that was in use at a time.
    """

    def __init__(self):
        self._free: dict[Any, collections.deque[memoryview]] = {}

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array: zeros at first, then whatever was left in one of its like."""
        dtype = np.dtype(dtype)
        free = self._free.setdefault((shape, dtype), collections.deque())
        try:
            memory = free.pop()
        except IndexError:
            size = math.prod(shape) * dtype.itemsize
            memory = memoryview(np.zeros(size, np.uint8))
        # All views refer to this array, whatever they are views of: NumPy follows
        # arrays back to the last one, and what is behind this one is no array.
        array = np.frombuffer(memory, np.uint8)
        weakref.finalize(array, free.append, memory).atexit = False
        return array.view(dtype).reshape(shape)
