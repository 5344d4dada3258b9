# SPDX-License-Identifier: Apache-2.0
"""The paths from data to noise: z_t = a_t latents + b_t noise, Eq. 2.

t = 0 is data, t = 1 is noise. Each path gives a_t, b_t, the log signal-to-noise ratio
log_snr = log(a_t^2 / b_t^2), which the paper writes lambda_t, and its derivative, which
is negative. Section and equation numbers are those of Esser et al. 2024,
arXiv:2403.03206.

All paths are rescalings of the rectified one. Divide z_t by a_t + b_t, and it lies on
the rectified path at the timestep b_t / (a_t + b_t) of equal log-SNR, which is what
`to_rectified` gives. So one set of solvers, one guidance and one validation loss serve
every path.

Where a log-SNR would be infinite, t is first moved to 2^-24 or 1 - 2^-24, the last
float32 before 1, so nothing here is infinite or NaN at t = 0 and t = 1.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logit, ndtri

from rfjax.errors import UserError
from rfjax.flow.timesteps import require_finite, require_positive

_TIMESTEP_MIN = 2.0**-24


class Path(abc.ABC):
    """Signal and noise as functions of the timestep; timesteps may have any shape."""

    @abc.abstractmethod
    def coefficients(self, timesteps: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (a_t, b_t)."""

    @abc.abstractmethod
    def log_snr(self, timesteps: jax.Array) -> jax.Array:
        """Returns log(a_t^2 / b_t^2), natural logarithm, always finite."""

    @abc.abstractmethod
    def log_snr_derivative(self, timesteps: jax.Array) -> jax.Array:
        """Returns the derivative of `log_snr` in t, negative and finite."""

    def to_rectified(self, timesteps: jax.Array) -> jax.Array:
        """Returns the timestep at which rectified flow has this path's log-SNR at t."""
        a, b = self.coefficients(timesteps)
        return b / (a + b)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Path):
    """Straight lines, z_t = (1 - t) latents + t noise, Eq. 13."""

    def coefficients(self, timesteps: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (1 - t, t)."""
        return 1 - timesteps, timesteps

    def log_snr(self, timesteps: jax.Array) -> jax.Array:
        """Returns 2 log((1 - t) / t)."""
        return -2 * logit(_inside(timesteps))

    def log_snr_derivative(self, timesteps: jax.Array) -> jax.Array:
        """Returns -2 / (t (1 - t))."""
        t = _inside(timesteps)
        return -2 / (t * (1 - t))


@dataclasses.dataclass(frozen=True)
class Cosine(Path):
    """A quarter circle, z_t = cos(pi t / 2) latents + sin(pi t / 2) noise, Eq. 17."""

    def coefficients(self, timesteps: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (cos(pi t / 2), sin(pi t / 2))."""
        # The cosine as a sine: cos(pi/2) rounds to a small number of either sign.
        half_pi = math.pi / 2
        return jnp.sin(half_pi * (1 - timesteps)), jnp.sin(half_pi * timesteps)

    def log_snr(self, timesteps: jax.Array) -> jax.Array:
        """Returns -2 log tan(pi t / 2)."""
        a, b = self.coefficients(_inside(timesteps))
        return 2 * (jnp.log(a) - jnp.log(b))

    def log_snr_derivative(self, timesteps: jax.Array) -> jax.Array:
        """Returns -2 pi / sin(pi t)."""
        a, b = self.coefficients(_inside(timesteps))
        return -math.pi / (a * b)  # sin(pi t) = 2 a b


@dataclasses.dataclass(frozen=True)
class EDM(Path):
    """Variance exploding, z_t = latents + b_t noise with ln b_t normal, Eq. 14.

    Attributes:
      log_sigma_mean: P_m, the mean of ln b_t for uniform t.
      log_sigma_std: P_s, its standard deviation.
    """

    log_sigma_mean: float
    log_sigma_std: float

    def __post_init__(self):
        require_finite("edm mean P_m", self.log_sigma_mean)
        require_positive("edm standard deviation P_s", self.log_sigma_std)

    def coefficients(self, timesteps: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (1, exp(P_m + P_s q)), q the standard normal quantile of t."""
        return jnp.ones_like(timesteps), jnp.exp(-self.log_snr(timesteps) / 2)

    def log_snr(self, timesteps: jax.Array) -> jax.Array:
        """Returns -2 (P_m + P_s q): for uniform t, N(-2 P_m, (2 P_s)^2)."""
        quantile = ndtri(_inside(timesteps))
        return -2 * (self.log_sigma_mean + self.log_sigma_std * quantile)

    def log_snr_derivative(self, timesteps: jax.Array) -> jax.Array:
        """Returns -2 P_s / normal density at q."""
        quantile = ndtri(_inside(timesteps))
        inverse_density = math.sqrt(2 * math.pi) * jnp.exp(quantile**2 / 2)
        return -2 * self.log_sigma_std * inverse_density


@dataclasses.dataclass(frozen=True)
class Linear(Path):
    """A discrete variance-preserving schedule, a_t = sqrt(prod_(s<=t) (1 - beta_s)).

    Level i of T is at t = i / (T - 1). Between levels the log-SNR is interpolated
    linearly in t, so that solvers may evaluate it anywhere. The ends are not pure: the
    log-SNR runs from 7.07 to -5.36 for "ldm", from 9.21 to -10.12 for "ddpm".

    Attributes:
      betas: a name in `BETAS`, "ldm" for the (LDM-)linear schedule of the paper.
    """

    betas: str

    def __post_init__(self):
        if self.betas not in BETAS:
            raise UserError(
                f"linear path betas must be one of {sorted(BETAS)}, got "
                f"{self.betas!r}; choose 'ldm' for the schedule of the paper."
            )

    @property
    def num_levels(self) -> int:
        """T, the number of discrete noise levels."""
        return len(_log_snr_table(self.betas))

    def coefficients(self, timesteps: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (sqrt(sigmoid(log_snr)), sqrt(sigmoid(-log_snr)))."""
        log_snr = self.log_snr(timesteps)
        return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))

    def log_snr(self, timesteps: jax.Array) -> jax.Array:
        """Returns log(a^2 / (1 - a^2)), linear between the levels."""
        table = self._table(timesteps)
        levels = jnp.arange(len(table), dtype=table.dtype)
        return jnp.interp(timesteps * (len(table) - 1), levels, table)

    def log_snr_derivative(self, timesteps: jax.Array) -> jax.Array:
        """Returns the slope between the two levels around t."""
        table = self._table(timesteps)
        last = len(table) - 1
        level = jnp.clip(jnp.floor(timesteps * last).astype(jnp.int32), 0, last - 1)
        return (table[level + 1] - table[level]) * last

    def _table(self, timesteps: jax.Array) -> jax.Array:
        """Returns the [T] log-SNR of every level, at the precision of the timesteps."""
        dtype = jnp.result_type(timesteps, jnp.float32)
        return jnp.asarray(_log_snr_table(self.betas), dtype=dtype)


def _ddpm_betas() -> np.ndarray:
    """beta_t = beta_0 + t/(T-1) (beta_(T-1) - beta_0), Ho et al. 2020."""
    return np.linspace(1e-4, 0.02, 1000)


def _ldm_betas() -> np.ndarray:
    """beta_t = (sqrt beta_0 + t/(T-1) (sqrt beta_(T-1) - sqrt beta_0))^2.

    The end values are those of Stable Diffusion; the paper does not print them.
    """
    return np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2


BETAS = {"ddpm": _ddpm_betas, "ldm": _ldm_betas}


@functools.cache
def _log_snr_table(betas: str) -> np.ndarray:
    """Returns [T] float64, the log-SNR of every level."""
    signal_variance = np.cumprod(1 - BETAS[betas]())
    return np.log(signal_variance) - np.log1p(-signal_variance)


RECTIFIED_FLOW = RectifiedFlow()
COSINE = Cosine()
LDM_LINEAR = Linear("ldm")
DDPM_LINEAR = Linear("ddpm")


def noisy_latents(
    path: Path, latents: jax.Array, noise: jax.Array, timesteps: jax.Array
) -> jax.Array:
    """Returns z_t = a_t latents + b_t noise, Eq. 2.

    Args:
      path: any `Path`.
      latents: [B, ...] clean latents.
      noise: [B, ...] standard normal.
      timesteps: [B] in [0, 1].

    Example:
      >>> noise = jnp.ones([1, 2])
      >>> noisy_latents(RECTIFIED_FLOW, 0 * noise, noise, jnp.array([0.25]))
      Array([[0.25, 0.25]], dtype=float32)
    """
    a, b = path.coefficients(timesteps)
    return per_example(a, latents) * latents + per_example(b, noise) * noise


def velocity_from_noise(
    path: Path, noise: jax.Array, *, noisy_latents: jax.Array, timesteps: jax.Array
) -> jax.Array:
    """Returns u_t = (a'_t / a_t) z_t - (b_t / 2) log_snr'_t noise, Eqs. 9 and 10.

    It is dz_t/dt along the path, at fixed latents and noise; noise - latents for
    rectified flow. Shapes as in `noisy_latents`.
    """
    log_a_derivative, noise_scale = _velocity_terms(path, timesteps, like=noise)
    return log_a_derivative * noisy_latents + noise_scale * noise


def noise_from_velocity(
    path: Path, velocity: jax.Array, *, noisy_latents: jax.Array, timesteps: jax.Array
) -> jax.Array:
    """Returns -2 / (log_snr'_t b_t) (velocity - (a'_t / a_t) z_t), below Eq. 10.

    The minus sign is intended: log_snr' is negative. At t = 0, where noise no longer
    moves z_t on some paths, the result is finite but meaningless.
    """
    log_a_derivative, noise_scale = _velocity_terms(path, timesteps, like=velocity)
    return (velocity - log_a_derivative * noisy_latents) / noise_scale


def _velocity_terms(
    path: Path, timesteps: jax.Array, *, like: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns a'_t / a_t and -b_t log_snr'_t / 2, shaped for arrays like `like`."""
    t = _inside(timesteps)
    signal, derivative = jax.jvp(
        lambda t: path.coefficients(t)[0], (t,), (jnp.ones_like(t),)
    )
    _, b = path.coefficients(t)
    noise_scale = -b * path.log_snr_derivative(t) / 2
    return per_example(derivative / signal, like), per_example(noise_scale, like)


def per_example(values: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes [B] to [B, 1, ..., 1], to multiply an array of the rank of `like`."""
    return jnp.reshape(values, jnp.shape(values) + (1,) * (like.ndim - 1))


def _inside(timesteps: jax.Array) -> jax.Array:
    """Keeps t away from 0 and 1, where a log-SNR is infinite."""
    return jnp.clip(timesteps, _TIMESTEP_MIN, 1 - _TIMESTEP_MIN)
