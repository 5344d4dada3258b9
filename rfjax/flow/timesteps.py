# SPDX-License-Identifier: Apache-2.0
"""How often each timestep is trained: densities of t, and the resolution shift.

Every density maps a uniform number u in (0, 1) to a timestep, so one uniform draw per
example serves them all. `density` is the probability density of the result and `cdf`
its integral. t = 0 is data, t = 1 is noise. Section and equation numbers are those of
Esser et al. 2024, arXiv:2403.03206.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import logit, ndtr, ndtri

from rfjax.errors import UserError
from rfjax.value_types import PositiveInt, Real, check_fields

# Beyond it Eq. 20 is no longer monotone, so t would have no density.
MODE_SCALE_MAX = 2 / (math.pi - 2)

_BISECTIONS = 60  # halves [0, 1] below the float64 spacing at 1


class TimestepDensity(Protocol):
    """A distribution of timesteps on [0, 1]; arrays may have any shape."""

    def from_uniform(self, uniform: jax.Array) -> jax.Array:
        """Maps u ~ U(0, 1) to a timestep that follows this density."""

    def density(self, timesteps: jax.Array) -> jax.Array:
        """Returns pi(t)."""

    def cdf(self, timesteps: jax.Array) -> jax.Array:
        """Returns the probability of a timestep below t."""


def sample_timesteps(keys: jax.Array, *, density: TimestepDensity) -> jax.Array:
    """Draws one timestep per key.

    Args:
      keys: [B] JAX keys.
      density: any `TimestepDensity`.

    Returns:
      [B] float32 in [0, 1].

    Example:
      >>> density = LogitNormal(mean=0.0, std=1.0)
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> [f"{t:.2f}" for t in sample_timesteps(keys, density=density)]
      ['0.73', '0.08', '0.79']
      >>> float(density.cdf(0.5))
      0.5
    """
    return density.from_uniform(jax.vmap(_open_uniform)(keys))


def _open_uniform(key: jax.Array) -> jax.Array:
    """Draws from the middles of 2^23 equal cells: neither 0 nor 1 can occur."""
    return jax.random.uniform(key, dtype=jnp.float32) + 2.0**-24


@dataclasses.dataclass(frozen=True)
class Uniform:
    """t ~ U(0, 1): what plain `rf` trains on."""

    def from_uniform(self, uniform: jax.Array) -> jax.Array:
        """Returns u itself."""
        return uniform

    def density(self, timesteps: jax.Array) -> jax.Array:
        """Returns 1."""
        return jnp.ones_like(timesteps)

    def cdf(self, timesteps: jax.Array) -> jax.Array:
        """Returns t itself."""
        return timesteps


@dataclasses.dataclass(frozen=True)
class UniformLevels(Uniform):
    """t = i / (T - 1) with i uniform on 0..T-1: training on a discrete schedule.

    Its density and CDF are given as those of the uniform density it approaches.
    """

    num_levels: int

    def from_uniform(self, uniform: jax.Array) -> jax.Array:
        """Returns the level that u falls on, as a timestep."""
        return jnp.floor(uniform * self.num_levels) / (self.num_levels - 1)


@dataclasses.dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ N(mean, std^2), Eq. 19: a mean below 0 favours data, above 0 noise."""

    mean: float
    std: float

    def __post_init__(self):
        require_finite("lognorm mean m", self.mean)
        require_positive("lognorm standard deviation s", self.std)

    def from_uniform(self, uniform: jax.Array) -> jax.Array:
        """Returns sigmoid(m + s q), q the standard normal quantile of u."""
        return jax.nn.sigmoid(self.mean + self.std * ndtri(uniform))

    def density(self, timesteps: jax.Array) -> jax.Array:
        """Returns Eq. 19; its limit 0 at both ends."""
        inside = (timesteps > 0) & (timesteps < 1)
        t = jnp.where(inside, timesteps, 0.5)
        score = (logit(t) - self.mean) / self.std
        # One exponential, because 1/(t (1 - t)) alone overflows near the ends.
        log_density = -0.5 * score**2 - jnp.log(t) - jnp.log1p(-t)
        scale = self.std * math.sqrt(2 * math.pi)
        return jnp.where(inside, jnp.exp(log_density) / scale, 0.0)

    def cdf(self, timesteps: jax.Array) -> jax.Array:
        """Returns the normal CDF of logit(t)."""
        return ndtr((logit(timesteps) - self.mean) / self.std)


@dataclasses.dataclass(frozen=True)
class Mode:
    """Mode sampling, Eq. 20: a scale s > 0 favours the middle, s < 0 the ends.

    At the two ends of the allowed range the density has an integrable pole: at t = 0
    and 1 for -1, at t = 1/2 for 2/(pi - 2).
    """

    scale: float

    def __post_init__(self):
        if not -1 <= self.scale <= MODE_SCALE_MAX:
            raise UserError(
                f"mode scale s must be in [-1, 2/(pi - 2) = {MODE_SCALE_MAX:.4f}], "
                f"where t is monotone in u, got {self.scale}; choose for example 1.29."
            )

    def from_uniform(self, uniform: jax.Array) -> jax.Array:
        """Returns f(u; s) = 1 - u - s (cos^2(pi u / 2) - 1 + u), decreasing in u."""
        bend = jnp.cos(math.pi / 2 * uniform) ** 2 - 1 + uniform
        return 1 - uniform - self.scale * bend

    def density(self, timesteps: jax.Array) -> jax.Array:
        """Returns 1 / |f'(u)| at the u with f(u) = t, found by bisection."""
        u = self._inverse(timesteps)
        slope = -1 - self.scale * (1 - math.pi / 2 * jnp.sin(math.pi * u))
        return 1 / jnp.abs(slope)

    def cdf(self, timesteps: jax.Array) -> jax.Array:
        """Returns 1 - u at the u with f(u) = t."""
        return 1 - self._inverse(timesteps)

    def _inverse(self, timesteps: jax.Array) -> jax.Array:
        """Solves f(u) = t for u, which has no closed form."""

        def halve(
            _: int, bounds: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            """Keeps the half of the bounds that holds u."""
            low, high = bounds
            middle = (low + high) / 2
            too_small = self.from_uniform(middle) > timesteps  # f decreases
            return jnp.where(too_small, middle, low), jnp.where(too_small, high, middle)

        bounds = jnp.zeros_like(timesteps), jnp.ones_like(timesteps)
        low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, bounds)
        return (low + high) / 2


@dataclasses.dataclass(frozen=True)
class CosMap:
    """The density that gives rectified flow the log-SNR of the cosine path, Eq. 21."""

    def from_uniform(self, uniform: jax.Array) -> jax.Array:
        """Returns 1 - 1 / (tan(pi u / 2) + 1)."""
        # sin / (sin + cos) is the same and stays finite at u = 1.
        sine, cosine = jnp.sin(math.pi / 2 * uniform), jnp.cos(math.pi / 2 * uniform)
        return sine / (sine + cosine)

    def density(self, timesteps: jax.Array) -> jax.Array:
        """Returns 2 / (pi - 2 pi t + 2 pi t^2), Eq. 22."""
        return 2 / (math.pi - 2 * math.pi * timesteps + 2 * math.pi * timesteps**2)

    def cdf(self, timesteps: jax.Array) -> jax.Array:
        """Returns 2/pi atan(t / (1 - t))."""
        return 2 / math.pi * jnp.arctan2(timesteps, 1 - timesteps)


@dataclasses.dataclass(frozen=True)
class Shifted:
    """A density after `shift_timesteps`: lognorm(m, s) becomes (m + ln shift, s)."""

    base: TimestepDensity
    shift: float

    def __post_init__(self):
        require_positive("shift", self.shift)

    def from_uniform(self, uniform: jax.Array) -> jax.Array:
        """Draws from the base density and shifts."""
        return shift_timesteps(self.base.from_uniform(uniform), shift=self.shift)

    def density(self, timesteps: jax.Array) -> jax.Array:
        """Returns the base density at the unshifted t, times its derivative in t."""
        derivative = self.shift / (self.shift - (self.shift - 1) * timesteps) ** 2
        return self.base.density(self._unshifted(timesteps)) * derivative

    def cdf(self, timesteps: jax.Array) -> jax.Array:
        """Returns the base CDF at the unshifted t."""
        return self.base.cdf(self._unshifted(timesteps))

    def _unshifted(self, timesteps: jax.Array) -> jax.Array:
        """Returns the timesteps before the shift."""
        return shift_timesteps(timesteps, shift=1 / self.shift)


def shift_timesteps(timesteps: jax.Array, *, shift: float) -> jax.Array:
    """Moves timesteps towards noise: t -> shift t / (1 + (shift - 1) t), Eq. 23.

    Adds -2 ln(shift) to the log-SNR of rectified flow. Shifts compose by multiplying.

    Args:
      timesteps: any shape in [0, 1]; 0 and 1 are not moved.
      shift: Python float > 0, usually > 1; 1 is the identity.

    Returns:
      The same shape and dtype, JAX or NumPy as given.

    Raises:
      UserError: if shift <= 0.

    Example:
      >>> shift_timesteps(0.5, shift=3.0)
      0.75
      >>> shift_timesteps(0.75, shift=1 / 3.0)
      0.5
    """
    require_positive("shift", shift)
    # The denominator is 1 + (shift - 1) t, written so that rounding never exceeds 1.
    return shift * timesteps / (1 - timesteps + shift * timesteps)


def resolution_shift(*, num_pixels: int, reference_num_pixels: int) -> float:
    """Returns the shift that adapts timesteps to another resolution, sqrt(m / n).

    Source: section 5.3.2, which settles on 3.0 for 1024 x 1024 by preference study.

    Args:
      num_pixels: m, height times width of the images to train on or sample.
      reference_num_pixels: n, height times width at which t is unchanged.

    Raises:
      UserError: if a count is not positive.

    Example:
      >>> resolution_shift(num_pixels=1024**2, reference_num_pixels=256**2)
      4.0
    """
    require_positive("num_pixels", num_pixels)
    require_positive("reference_num_pixels", reference_num_pixels)
    return math.sqrt(num_pixels / reference_num_pixels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicShift:
    """A resolution shift that follows the number of tokens of an image.

    Its logarithm, mu, is linear in the number of tokens. The names, the defaults and
    the formula are those of FlowMatchEulerDiscreteScheduler in diffusers, with
    use_dynamic_shifting.

    Attributes:
      base_shift: mu at `base_image_seq_len` tokens.
      max_shift: mu at `max_image_seq_len` tokens.
      base_image_seq_len: tokens of the smaller reference image, 256 px in SD3.
      max_image_seq_len: tokens of the larger one, 1024 px in SD3.
    """

    base_shift: Real = 0.5
    max_shift: Real = 1.15
    base_image_seq_len: PositiveInt = 256
    max_image_seq_len: PositiveInt = 4096

    def __post_init__(self):
        check_fields(self, section="sample.dynamic_shift")
        if self.base_image_seq_len >= self.max_image_seq_len:
            raise UserError(
                "sample.dynamic_shift.base_image_seq_len must be below "
                f"max_image_seq_len, got {self.base_image_seq_len} and "
                f"{self.max_image_seq_len}; choose for example 256 and 4096."
            )

    def shift(self, num_image_tokens: int) -> float:
        """The shift, exp(mu), of an image of so many tokens.

        Example:
          >>> round(DynamicShift().shift(4096), 4)
          3.1582
        """
        slope = (self.max_shift - self.base_shift) / (
            self.max_image_seq_len - self.base_image_seq_len
        )
        mu = self.base_shift + slope * (num_image_tokens - self.base_image_seq_len)
        return math.exp(mu)


def require_positive(field: str, value: float) -> None:
    """Raises UserError unless value is a finite number > 0."""
    if not 0 < value < math.inf:
        raise UserError(
            f"{field} must be a finite number > 0, got {value}; choose for example 1.0."
        )


def require_finite(field: str, value: float) -> None:
    """Raises UserError unless value is a finite number."""
    if not math.isfinite(value):
        raise UserError(f"{field} must be finite, got {value}; choose for example 0.0.")
