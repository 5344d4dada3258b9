# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rfjax.errors import UserError
from rfjax.value_types import PositiveInt, ProperFraction, check_fields

_LARGEST_INITIAL_SHARE = 0.05  # of which nothing is said


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

    def check_steps(self, num_steps: int) -> None:
        """Raises UserError if a run is too short for a single update."""
        if self.every_steps > num_steps:
            raise UserError(
                f"ema.every_steps must be at most train.num_steps = {num_steps}, got "
                f"{self.every_steps}: the average, which is what is sampled and "
                "exported, would stay the initial weights; set it to 1, or train "
                "longer."
            )

    def shortcomings(self, num_steps: int) -> list[str]:
        """What the average of a run of this length lacks, in words."""
        found = []
        missed = num_steps % self.every_steps
        if missed:
            found.append(
                f"the last {missed} of {num_steps} steps never reach the moving average"
                f", which is updated every {self.every_steps} steps; choose an "
                "ema.every_steps that divides train.num_steps"
            )
        initial = self.initial_share(num_steps)
        if initial > _LARGEST_INITIAL_SHARE:
            found.append(
                f"{initial:.1%} of the moving average will still be the initial "
                f"weights after {num_steps} steps; lower ema.decay or "
                "ema.every_steps, or set ema.warmup=True"
            )
        return found

    def initial_share(self, num_steps: int) -> float:
        """The share of the initial weights in the average after a number of steps."""
        share = 1.0
        for num_updates in range(1, num_steps // self.every_steps + 1):
            decay = self.decay
            if self.warmup:
                decay = min(decay, (1 + num_updates) / (10 + num_updates))
            share *= decay
            if share < 1e-6:
                break
        return share


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
