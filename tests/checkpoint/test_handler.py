# SPDX-License-Identifier: Apache-2.0
"""How a state is written: what it costs the loop."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rfjax.checkpoint.handler import StateHandler, StateSave


@pytest.fixture
def compilations():
    """Grows by one with every program that XLA compiles."""
    seen = []

    def note(event, duration, **_):
        if "backend_compile" in event:
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield seen
    jax.monitoring.unregister_event_duration_listener(note)


def save(path, tree):
    with ocp.AsyncCheckpointer(StateHandler(lambda folder: None)) as checkpointer:
        checkpointer.save(path, args=StateSave(tree))


def test_nothing_is_compiled_to_save_small_arrays(tmp_path, compilations):
    mesh = jax.make_mesh((8,), ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    small, large = (
        {str(n): jax.device_put(np.ones((n, 8), np.float32), everywhere) for n in rows}
        for rows in (range(8, 24), (2**19,))
    )
    compilations.clear()
    save(tmp_path / "small", small)
    assert not compilations
    save(tmp_path / "large", large)
    assert compilations  # each device cuts its part of what all of them hold
    restored = ocp.StandardCheckpointer().restore(tmp_path / "small")
    jax.tree.map(np.testing.assert_array_equal, restored, small)
