# SPDX-License-Identifier: Apache-2.0
"""The loss weights w_t of the paper: every formulation as one weighted noise loss.

L_w = -1/2 E_(t ~ U) [w_t log_snr'_t |predicted noise - noise|^2]. Training does not
need w_t, which follows from what is predicted and how often (`formulation_weight`);
this file holds the forms that the paper prints, for comparing formulations. The paper
drops constant factors from w_t, so `formulation_weight` is 8 times Eq. 16, 1/pi times
the sech of eps/cos, and 2/pi times the weight of v/cos.

Section and equation numbers are those of Esser et al. 2024, arXiv:2403.03206.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from rfjax.flow.formulations import Formulation
from rfjax.flow.path import Path
from rfjax.flow.prediction import SIGMA_DATA, determinant
from rfjax.flow.timesteps import TimestepDensity


def weighted_loss(
    noise_error: jax.Array, *, weight: jax.Array, log_snr_derivative: jax.Array
) -> jax.Array:
    """Returns -1/2 w_t log_snr'_t |error|^2, whose mean over uniform t is L_w.

    The minus sign makes it positive: the log-SNR falls with t.

    Args:
      noise_error: squared error of the predicted noise, any shape.
      weight: w_t, the same shape.
      log_snr_derivative: `Path.log_snr_derivative`, the same shape.
    """
    return -0.5 * weight * log_snr_derivative * noise_error


def flow_matching_weight(path: Path, timesteps: jax.Array) -> jax.Array:
    """Returns w_t = -1/2 log_snr'_t b_t^2: the w for which L_w is L_CFM, Eq. 12."""
    _, b = path.coefficients(timesteps)
    return -0.5 * path.log_snr_derivative(timesteps) * b**2


def rectified_flow_weight(timesteps: jax.Array) -> jax.Array:
    """Returns w_t = t / (1 - t) = exp(-log_snr / 2), for Eq. 13."""
    return timesteps / (1 - timesteps)


def resampled_weight(timesteps: jax.Array, *, density: TimestepDensity) -> jax.Array:
    """Returns w_t = t / (1 - t) pi(t), Eq. 18: what drawing t from pi amounts to."""
    return rectified_flow_weight(timesteps) * density.density(timesteps)


def edm_weight(
    log_snr: jax.Array, *, log_sigma_mean: float, log_sigma_std: float
) -> jax.Array:
    """Returns N(log_snr | -2 P_m, (2 P_s)^2) (exp(-log_snr) + 0.5^2), Eq. 16."""
    std = 2 * log_sigma_std
    score = (log_snr + 2 * log_sigma_mean) / std
    normal = jnp.exp(-(score**2) / 2) / (std * math.sqrt(2 * math.pi))
    return normal * (jnp.exp(-log_snr) + SIGMA_DATA**2)


def cosine_noise_weight(log_snr: jax.Array) -> jax.Array:
    """Returns sech(log_snr / 2), for eps/cos."""
    return 1 / jnp.cosh(log_snr / 2)


def cosine_v_weight(log_snr: jax.Array) -> jax.Array:
    """Returns exp(-log_snr / 2), for v/cos; the same as rf, on another path."""
    return jnp.exp(-log_snr / 2)


def formulation_weight(formulation: Formulation, timesteps: jax.Array) -> jax.Array:
    """Returns the w_t that training a formulation amounts to, constants included.

    A squared error of the prediction is (determinant / a)^2 squared errors of the
    noise; the log-SNR of the trained timesteps has the density pi(t) / |log_snr'_t|,
    and L_w counts it half.

    Args:
      formulation: a `Formulation`.
      timesteps: of its own path, any shape.
    """
    path = formulation.path
    density = formulation.density.density(timesteps)
    log_snr_density = -density / path.log_snr_derivative(timesteps)
    sigma = jnp.exp(-path.log_snr(timesteps) / 2)  # b / a
    error_ratio = determinant(formulation.prediction, jnp.ones_like(sigma), sigma)
    return 2 * log_snr_density * error_ratio**2
