# SPDX-License-Identifier: Apache-2.0
"""Memory of batches is given out again, and never too early."""

import gc

import jax
import ml_dtypes
import numpy as np
import pytest

from rfjax.data import ShardsConfig
from rfjax.data.reused_memory import ReusedMemory

SHAPE = (4, 1000)


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again():
    memory = ReusedMemory()
    array = memory.zeros(SHAPE, ml_dtypes.bfloat16)
    assert (array.shape, array.dtype) == (SHAPE, ml_dtypes.bfloat16)
    assert not array.any()
    array[:] = 1
    first = address(array)
    del array
    again = memory.zeros(SHAPE, ml_dtypes.bfloat16)
    assert address(again) == first
    assert (again == 1).all(), "as it was left"
    other = memory.zeros(SHAPE[::-1], ml_dtypes.bfloat16)
    assert not other.any(), "another shape has memory of its own"


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array[1:, ::2],
        lambda array: array[0].view(np.uint8)[4:].reshape(-1, 4),
        lambda array: memoryview(array.view(np.uint16)),
        lambda array: jax.device_put(array),
        lambda array: iter(array),
    ],
)
def test_memory_in_use_is_not_given_out(view):
    memory = ReusedMemory()
    array = memory.zeros(SHAPE, ml_dtypes.bfloat16)
    first = address(array)
    kept = view(array)
    del array
    gc.collect()
    other = memory.zeros(SHAPE, ml_dtypes.bfloat16)
    if isinstance(kept, jax.Array):  # which may have a copy
        other[:] = 1
        assert not np.asarray(kept).any()
        return
    assert address(other) != first
    del kept, other
    second = memory.zeros(SHAPE, ml_dtypes.bfloat16)
    third = memory.zeros(SHAPE, ml_dtypes.bfloat16)
    assert first in (address(second), address(third)), "control"


def test_batches_stay_as_they_were(tiny_root):
    """Those that are kept, while others are read into the memory of those that are not.

    Nobody can write into them: padding is only written once.
    """
    stream = ShardsConfig(str(tiny_root), read_threads=2).train_stream(
        global_batch_size=8, seed=0
    )
    kept, copies = [], []
    for number in range(30):
        batch = next(stream)
        if number % 3 == 0:
            kept.append(batch)
            copies.append(jax.tree.map(np.copy, batch))
    stream.close()
    jax.tree.map(np.testing.assert_array_equal, kept, copies)
    for array in (kept[0].latents, kept[0].conditioning.context):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
