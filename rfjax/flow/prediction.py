# SPDX-License-Identifier: Apache-2.0
"""What a network predicts: velocity, noise, latents, v, or the F of EDM.

Each prediction is a weighted sum of latents and noise, and so is z = a latents +
b noise. Two equations in two unknowns: from z and any prediction follow latents and
noise (`separate`), hence any other prediction (`convert`). The weights do not change
when a and b are multiplied by a common factor, so the same row of `PREDICTIONS` holds
on every path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

# EDM's assumed standard deviation of the latents: 0.5 as the paper prints it (Eq. 16),
# although latents here are normalised to 1.
SIGMA_DATA = 0.5

_Pair = tuple[jax.Array, jax.Array]  # what belongs to latents, what to noise


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A target and the network input that goes with it; a and b are arrays.

    Attributes:
      weights: (a, b) -> (of_latents, of_noise); target = of_latents latents +
        of_noise noise.
      input_scale: (a, b) -> the factor on z that gives the network its input.
    """

    weights: Callable[[jax.Array, jax.Array], _Pair]
    input_scale: Callable[[jax.Array, jax.Array], jax.Array]


def _velocity_weights(a: jax.Array, b: jax.Array) -> _Pair:
    """Velocity of rectified flow: noise - latents, Eq. 13."""
    return -jnp.ones_like(a), jnp.ones_like(b)


def _rectified_scale(a: jax.Array, b: jax.Array) -> jax.Array:
    """Puts z on the rectified path, where a + b = 1."""
    return 1 / (a + b)


def _noise_weights(a: jax.Array, b: jax.Array) -> _Pair:
    """The noise itself."""
    return jnp.zeros_like(a), jnp.ones_like(b)


def _latents_weights(a: jax.Array, b: jax.Array) -> _Pair:
    """The latents themselves."""
    return jnp.ones_like(a), jnp.zeros_like(b)


def _v_weights(a: jax.Array, b: jax.Array) -> _Pair:
    """The v of Salimans and Ho 2022: a noise - b latents with a^2 + b^2 = 1."""
    scale = _variance_preserving_scale(a, b)
    return -b * scale, a * scale


def _variance_preserving_scale(a: jax.Array, b: jax.Array) -> jax.Array:
    """Gives z unit variance if the latents have it."""
    return 1 / jnp.sqrt(a**2 + b**2)


def _f_weights(a: jax.Array, b: jax.Array) -> _Pair:
    """F of EDM: (latents - c_skip z) / c_out with z = latents + sigma noise.

    c_skip = s^2 / (sigma^2 + s^2), c_out = sigma s / sqrt(sigma^2 + s^2), sigma = b / a
    and s = SIGMA_DATA (Karras et al. 2022, arXiv:2206.00364, table 1). Here z is
    multiplied out, because 1 - c_skip would lose its precision as sigma goes to 0.
    """
    scale = _f_scale(a, b) / SIGMA_DATA
    return b * scale, -(SIGMA_DATA**2) * a * scale


def _f_scale(a: jax.Array, b: jax.Array) -> jax.Array:
    """Gives c_in z of EDM: unit variance if the latents have SIGMA_DATA."""
    return 1 / jnp.sqrt(b**2 + SIGMA_DATA**2 * a**2)


PREDICTIONS = {
    "velocity": Prediction(_velocity_weights, _rectified_scale),
    "noise": Prediction(_noise_weights, _variance_preserving_scale),
    "latents": Prediction(_latents_weights, _variance_preserving_scale),
    "v": Prediction(_v_weights, _variance_preserving_scale),
    "F": Prediction(_f_weights, _f_scale),
}


def target(
    name: str, *, latents: jax.Array, noise: jax.Array, a: jax.Array, b: jax.Array
) -> jax.Array:
    """Returns what the network should have predicted.

    Args:
      name: a key of `PREDICTIONS`.
      latents: clean latents, any shape.
      noise: the same shape.
      a: signal coefficient, of a shape that multiplies latents, e.g. [B, 1, 1, 1].
      b: noise coefficient, the same shape as a.
    """
    of_latents, of_noise = PREDICTIONS[name].weights(a, b)
    return of_latents * latents + of_noise * noise


def separate(
    name: str,
    prediction: jax.Array,
    *,
    noisy_latents: jax.Array,
    a: jax.Array,
    b: jax.Array,
) -> _Pair:
    """Returns the (latents, noise) that a prediction implies at fixed noisy latents.

    Infinite where the prediction says nothing: noise at a = 0, latents at b = 0.
    """
    of_latents, of_noise = PREDICTIONS[name].weights(a, b)
    scale = determinant(name, a, b)
    latents = (of_noise * noisy_latents - b * prediction) / scale
    noise = (a * prediction - of_latents * noisy_latents) / scale
    return latents, noise


def convert(
    prediction: jax.Array,
    *,
    source: str,
    destination: str,
    noisy_latents: jax.Array,
    a: jax.Array,
    b: jax.Array,
) -> jax.Array:
    """Turns one kind of prediction into another at fixed noisy latents.

    Args:
      prediction: network output of the kind `source`.
      source: a key of `PREDICTIONS`.
      destination: a key of `PREDICTIONS`.
      noisy_latents: z = a latents + b noise.
      a: as in `target`.
      b: as in `target`.

    Example:
      Half-way between latents 0 and noise 2, the velocity is 2:

      >>> half = jnp.array([0.5])
      >>> convert(
      ...     jnp.array([2.0]),
      ...     source="velocity",
      ...     destination="latents",
      ...     noisy_latents=jnp.array([1.0]),
      ...     a=half,
      ...     b=half,
      ... )
      Array([0.], dtype=float32)
    """
    latents, noise = separate(source, prediction, noisy_latents=noisy_latents, a=a, b=b)
    return target(destination, latents=latents, noise=noise, a=a, b=b)


def determinant(name: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a of_noise - b of_latents.

    Divided by a it is the error of a prediction per error of the noise, at fixed z.
    """
    of_latents, of_noise = PREDICTIONS[name].weights(a, b)
    return a * of_noise - b * of_latents
