# SPDX-License-Identifier: Apache-2.0
"""Types shared between modules: batches, conditioning, layouts, the velocity.

The one seam of the system is `VelocityFn`: losses, solvers and guidance know
nothing of the model, only a function from noisy latents, timesteps and
conditioning to a velocity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

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
        stream, which repeats only after 2**32 examples; in validation the record's
        place in the split. Random numbers derive from it, never from the row in the
        batch.
    """

    latents: jax.Array
    conditioning: Conditioning
    sample_index: jax.Array


# (noisy_latents [B, H, W, C], timesteps [B] float32 in [0, 1], conditioning)
# -> velocity [B, H, W, C] float32, pointing from data (t = 0) to noise (t = 1).
VelocityFn = Callable[[jax.Array, jax.Array, Conditioning], jax.Array]


# Logical names of an array's dims; None is a dim that is never split.
DimNames = tuple[str | None, ...]


class Layout(Protocol):
    """Places activations on a mesh by the logical names of their dims.

    Attributes:
      platform: what the devices are, cpu, gpu or tpu; None if that is not known.
    """

    platform: str | None

    def __call__(self, array: jax.Array, names: DimNames) -> jax.Array:
        """Pins where an array lives."""

    def num_shards(self, name: str) -> int:
        """Parts that a dim of this logical name is split into."""

    def map_shards(
        self, function: Callable, *, in_names: Any, out_names: Any
    ) -> Callable:
        """Runs a function on each device's shards, for kernels that XLA cannot split.

        Args:
          function: of as many pytrees of arrays as `in_names` has entries.
          in_names: for each argument the logical names of its dims, one tuple for all
            its leaves or a tuple of such tuples, one for each leaf.
          out_names: the same for the result.
        """


class OneDevice:
    """The `Layout` that does nothing: every array is whole, wherever it is."""

    platform = None

    def __call__(self, array: jax.Array, names: DimNames) -> jax.Array:
        """Returns the array."""
        del names
        return array

    def num_shards(self, name: str) -> int:
        """Returns 1."""
        del name
        return 1

    def map_shards(
        self, function: Callable, *, in_names: Any, out_names: Any
    ) -> Callable:
        """Returns the function."""
        del in_names, out_names
        return function


ONE_DEVICE = OneDevice()


class Evaluator(Protocol):
    """A measurement of one set of parameters, ready to run.

    The training loop runs several periodically and knows none by name. How one is
    configured is said in `rfjax.evaluation.base`.

    Attributes:
      name: its metrics are called NAME/..., those of the EMA weights NAME_ema/...
      every_steps: optimizer steps between evaluations; the last step always has one.
    """

    name: str
    every_steps: int

    def __call__(
        self, params: Mapping[str, Any], *, check_in: Callable[[], None] = ...
    ) -> Mapping[str, float]:
        """Measures one set of parameters; all processes call it together.

        Args:
          params: of the model, in the layout of the mesh.
          check_in: called between parts of the work; what it raises ends it.

        Returns:
          Name of a metric -> finite value; any other, or a blown-up `loss`, ends the
          run as diverged.
        """

    def compile(self, params: Mapping[str, Any]) -> None:
        """Compiles ahead of the first call, while nothing is lost by a signal."""
