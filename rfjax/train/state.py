# SPDX-License-Identifier: Apache-2.0
"""The train state: one pytree, created straight into its sharded layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes, and all that a checkpoint holds of it.

    Attributes:
      step: int32 scalar, finished optimizer steps.
      params: nested dict of float32 arrays.
      ema_params: moving average of `params`, same tree.
      opt_state: optax state; its moments have the tree of `params`.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any


def init_state(
    key: jax.Array,
    *,
    init_params: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """A fresh state; jit it with sharded outputs and no device ever holds it whole."""
    params = init_params(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: donated buffers of params and average must not be one and the same.
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )
