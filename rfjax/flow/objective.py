# SPDX-License-Identifier: Apache-2.0
"""The training loss of every formulation, and the validation loss they share.

Training draws t and noise, mixes z_t, calls the network, and takes the mean squared
error of what it predicts. All of it happens on the rectified path, to which every other
path reduces by a rescaling that changes neither the network input nor the target. The
draws of an example depend only on the seed, the step and the example: not on its row,
the batch size or the devices.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from rfjax.errors import UserError
from rfjax.flow import path
from rfjax.flow.formulations import Formulation
from rfjax.flow.prediction import PREDICTIONS, target
from rfjax.flow.timesteps import Shifted, Uniform, sample_timesteps, shift_timesteps
from rfjax.types import Batch, VelocityFn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossOutput:
    """Training loss per example.

    Attributes:
      loss: [B] float32, weighted squared error of the prediction, mean over H, W, C.
      timesteps: [B] float32 in [0, 1], of the rectified path.
    """

    loss: jax.Array
    timesteps: jax.Array


def example_keys(
    seed_key: jax.Array, *, step: int | jax.Array, sample_index: jax.Array
) -> jax.Array:
    """Returns one key per example, a function of (seed, step, sample index) alone.

    Args:
      seed_key: a single JAX key, the same for the whole run.
      step: int, or int32 scalar array.
      sample_index: [B] uint32.

    Returns:
      [B] keys.
    """
    step_key = jax.random.fold_in(seed_key, step)
    return jax.vmap(lambda index: jax.random.fold_in(step_key, index))(sample_index)


def loss_per_example(
    network_fn: VelocityFn,
    batch: Batch,
    *,
    keys: jax.Array,
    formulation: Formulation,
    shift: float = 1.0,
    density_as: str = "sampler",
) -> LossOutput:
    """Returns the training loss of each example.

    Args:
      network_fn: (input [B, H, W, C] float32, timesteps [B] float32, conditioning) ->
        prediction [B, H, W, C]; `Formulation` says what goes in and out. For rf that is
        noisy latents and velocity.
      batch: clean latents and their conditioning.
      keys: [B] keys, see `example_keys`.
      formulation: path, prediction and density of timesteps.
      shift: > 0, moves the drawn timesteps towards noise; 1 leaves them unchanged.
      density_as: "sampler" draws t from the density; "weight" draws t uniformly and
        multiplies the loss by the density, Eq. 18. Equal in expectation.

    Returns:
      Loss and timesteps, [B] float32.

    Raises:
      UserError: shift <= 0, unknown density_as, or "weight" off the rectified path.
    """
    if density_as not in _TIMESTEPS_AND_WEIGHT:
        raise UserError(
            f"density_as must be one of {sorted(_TIMESTEPS_AND_WEIGHT)}, got "
            f"{density_as!r}; choose 'sampler' to train as the paper does."
        )
    latents = batch.latents.astype(jnp.float32)
    timestep_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    timesteps, weight = _TIMESTEPS_AND_WEIGHT[density_as](
        timestep_keys, formulation=formulation, shift=shift
    )
    noise = jax.vmap(
        lambda key: jax.random.normal(key, latents.shape[1:], jnp.float32)
    )(noise_keys)

    b = path.per_example(timesteps, latents)
    a = 1 - b
    input_scale = PREDICTIONS[formulation.prediction].input_scale(a, b)
    noisy_latents = a * latents + b * noise
    prediction = network_fn(input_scale * noisy_latents, timesteps, batch.conditioning)
    wanted = target(formulation.prediction, latents=latents, noise=noise, a=a, b=b)
    loss = weight * _mean_squared_error(prediction, wanted)
    return LossOutput(loss=loss, timesteps=timesteps)


def loss_at_timesteps(
    network_fn: VelocityFn,
    batch: Batch,
    *,
    timesteps: jax.Array,
    noise: jax.Array,
    formulation: Formulation,
) -> jax.Array:
    """Returns the error of the rectified-flow velocity at given t, for any formulation.

    The network is called through `Formulation.velocity_fn`: the same noisy latents,
    log-SNR and units for all, so values compare across formulations, which training
    losses never do. For rf it is the plain velocity loss. For a noise
    prediction it is its error times 1/(1 - t)^2, with t at most 0.9933.

    Args:
      network_fn: as in `loss_per_example`.
      batch: clean latents and their conditioning.
      timesteps: [B] float32 in [0, 1], of the rectified path.
      noise: [B, H, W, C] float32.
      formulation: what network_fn was trained as.

    Returns:
      [B] float32, mean over H, W, C.
    """
    latents = batch.latents.astype(jnp.float32)
    noisy_latents = path.noisy_latents(path.RECTIFIED_FLOW, latents, noise, timesteps)
    velocity_fn = formulation.velocity_fn(network_fn)
    velocity = velocity_fn(noisy_latents, timesteps, batch.conditioning)
    return _mean_squared_error(velocity, noise - latents)


def _sample(
    keys: jax.Array, *, formulation: Formulation, shift: float
) -> tuple[jax.Array, jax.Array | float]:
    """Draws timesteps of the path from its density, rectified and shifted; weight 1."""
    timesteps = sample_timesteps(keys, density=formulation.density)
    timesteps = formulation.path.to_rectified(timesteps)
    return shift_timesteps(timesteps, shift=shift), 1.0


def _weight(
    keys: jax.Array, *, formulation: Formulation, shift: float
) -> tuple[jax.Array, jax.Array | float]:
    """Draws timesteps uniformly; the weight is the density, shifted, Eq. 18."""
    if formulation.path != path.RECTIFIED_FLOW:
        raise UserError(
            "density_as='weight' needs a formulation on the rectified path, got "
            f"{formulation}; choose density_as='sampler'."
        )
    timesteps = sample_timesteps(keys, density=Uniform())
    return timesteps, Shifted(formulation.density, shift).density(timesteps)


_TIMESTEPS_AND_WEIGHT = {"sampler": _sample, "weight": _weight}


def _mean_squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Returns [B] float32."""
    squares = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    return squares.mean(axis=tuple(range(1, squares.ndim)))
