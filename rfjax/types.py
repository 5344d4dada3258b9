# SPDX-License-Identifier: Apache-2.0
"""What crosses the borders between modules: batches, conditioning, the velocity seam.

The one seam of the system is `VelocityFn`: losses, solvers and guidance know
nothing of the model, only a function from noisy latents, timesteps and
conditioning to a velocity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What the velocity is conditioned on.

    Attributes:
      context: [B, T, context_dim] text token states, any float dtype.
      pooled: [B, pooled_dim] one text vector per example, any float dtype.
      context_mask: [B, T] bool, True where a text token may be attended, or None
        when every position counts, pads included (SD3 runs without a mask).
    """

    context: jax.Array
    pooled: jax.Array
    context_mask: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch of examples.

    Attributes:
      latents: [B, H, W, C] clean latents, zero mean and unit variance by dataset.
      conditioning: text states of the same B examples.
      sample_index: [B] uint32. In training the position in the endless shuffled
        stream, so it never repeats; in validation the record's place in the split.
        Random numbers derive from it, never from the row in the batch.
    """

    latents: jax.Array
    conditioning: Conditioning
    sample_index: jax.Array


# (noisy_latents [B, H, W, C], timesteps [B] float32 in [0, 1], conditioning)
# -> velocity [B, H, W, C] float32, pointing from data (t = 0) to noise (t = 1).
VelocityFn = Callable[[jax.Array, jax.Array, Conditioning], jax.Array]


class Evaluator(Protocol):
    """Anything the training loop runs now and then without knowing what it is."""

    def __call__(self, params: Mapping, *, step: int) -> Mapping[str, float]:
        """Returns metric name -> value for one set of parameters."""
