# SPDX-License-Identifier: Apache-2.0
"""States whose arrays are made while they are saved."""

import dataclasses
import weakref

import jax
import numpy as np
import pytest

from rfjax import checkpoint


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    params: dict
    ema_params: dict


def test_arrays_are_made_one_at_a_time_and_not_kept(tmp_path):
    alive, most = weakref.WeakSet(), []

    class Counted(np.ndarray):
        """Is hashed by identity, as a set of weak references needs it."""

        __hash__ = object.__hash__

        def __eq__(self, other):
            return self is other

    def lazy(number):
        def make():
            array = np.full((50, 70), number, np.float32).view(Counted)
            alive.add(array)
            most.append(len(alive))
            return array

        return checkpoint.LazyArray((50, 70), np.dtype(np.float32), make)

    params = {f"leaf{number}": lazy(number) for number in range(8)}
    state = State(params, {name: lazy(-number) for number, name in enumerate(params)})
    checkpoints = checkpoint.Checkpoints(tmp_path, config=checkpoint.CheckpointConfig())
    checkpoints.save(0, state, data_position={"step": 0})
    checkpoints.close()
    assert len(most) == 16
    assert max(most) <= 2  # the one before may not be collected yet
    assert checkpoint.find_damage(tmp_path, 0) == []
    for weights, sign in (("raw", 1), ("ema", -1)):
        stored = checkpoint.open_params(tmp_path, weights=weights, step=0)
        found = stored.read(
            {name: jax.ShapeDtypeStruct((50, 70), np.float32) for name in params}
        )
        for number, name in enumerate(params):
            assert (np.asarray(found[name]) == sign * number).all(), name


def test_what_a_lazy_array_raises_ends_the_save(tmp_path):
    def make():
        raise ValueError("damaged")

    leaf = checkpoint.LazyArray((2,), np.dtype(np.float32), make)
    checkpoints = checkpoint.Checkpoints(tmp_path, config=checkpoint.CheckpointConfig())
    checkpoints.save(0, State({"a": leaf}, {"a": leaf}), data_position={})
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.close()
    assert checkpoint.finished_steps(tmp_path) == []
