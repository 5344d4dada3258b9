# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rfjax.value_types import PositiveInt, ProperFraction, check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Moving average, counted in optimizer steps.

    Attributes:
      decay: share of the old average that each update keeps. SD3 uses 0.99 every
        100 steps (section B.3), a half-life of 6,900 steps.
      every_steps: optimizer steps between updates.
      warmup: early updates keep (1 + n) / (10 + n) after n of them if that is less,
        so that the random initialisation is soon forgotten.
    """

    decay: ProperFraction = 0.99
    every_steps: PositiveInt = 100
    warmup: bool = True

    def __post_init__(self):
        check_fields(self, section="ema")


def update_ema(
    ema_params: Any, params: Any, *, step: jax.Array, config: EmaConfig
) -> Any:
    """The average after `step` finished optimizer steps (>= 1), in float32."""
    num_updates = step // config.every_steps
    decay = jnp.asarray(config.decay, jnp.float32)
    if config.warmup:
        decay = jnp.minimum(decay, (1.0 + num_updates) / (10.0 + num_updates))
    keep = jnp.where(step % config.every_steps == 0, decay, 1.0)
    return jax.tree.map(lambda e, p: e * keep + p * (1.0 - keep), ema_params, params)
