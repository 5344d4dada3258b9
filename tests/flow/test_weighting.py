# SPDX-License-Identifier: Apache-2.0
"""Eq. 12, L_w and the printed weights against what training amounts to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.flow.formulations import parse
from rfjax.flow.path import (
    COSINE,
    EDM,
    LDM_LINEAR,
    RECTIFIED_FLOW,
    noise_from_velocity,
    noisy_latents,
)
from rfjax.flow.timesteps import LogitNormal
from rfjax.flow.weighting import (
    cosine_noise_weight,
    cosine_v_weight,
    edm_weight,
    flow_matching_weight,
    formulation_weight,
    rectified_flow_weight,
    resampled_weight,
    weighted_loss,
)

TIMESTEPS = (np.arange(1, 999, 37) + 0.37) / 999


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "path", [RECTIFIED_FLOW, COSINE, EDM(-1.2, 1.2), LDM_LINEAR], ids=str
)
def test_flow_matching_loss_is_a_weighted_noise_loss(path):
    """Eq. 12, pointwise: |v - u|^2 = (b log_snr' / 2)^2 |noise error|^2 = L_w."""
    latents, noise, wrong = np.random.default_rng(0).standard_normal((3, 27, 5))

    @jax.jit
    def losses(t):
        # u is the derivative of z in t, by autodiff.
        z, u = jax.jvp(
            lambda t: noisy_latents(path, latents, noise, t), (t,), (jnp.ones(27),)
        )
        predicted = noise_from_velocity(path, u + wrong, noisy_latents=z, timesteps=t)
        noise_error = jnp.square(predicted - noise).sum(axis=1)
        log_snr_derivative = jax.vmap(jax.grad(path.log_snr))(t)
        _, b = path.coefficients(t)
        eq_12 = (b * log_snr_derivative / 2) ** 2 * noise_error
        unified, control = (
            weighted_loss(
                noise_error, weight=weight, log_snr_derivative=log_snr_derivative
            )
            for weight in (flow_matching_weight(path, t), jnp.ones(27))
        )
        return eq_12, unified, control

    eq_12, unified, control = losses(TIMESTEPS)
    velocity_error = np.square(wrong).sum(axis=1)
    np.testing.assert_allclose(eq_12, velocity_error, rtol=1e-8)
    np.testing.assert_allclose(unified, velocity_error, rtol=1e-8)
    assert np.abs(control / velocity_error - 1).max() > 0.1


def test_rectified_flow_weight():
    t = jnp.asarray(TIMESTEPS, jnp.float32)
    weight = rectified_flow_weight(t)
    np.testing.assert_allclose(weight, jnp.exp(-RECTIFIED_FLOW.log_snr(t) / 2), 1e-5)
    np.testing.assert_allclose(weight, flow_matching_weight(RECTIFIED_FLOW, t), 1e-5)


@pytest.mark.usefixtures("x64")
# Printed weight and the constant that the paper dropped from it.
@pytest.mark.parametrize(
    ("name", "constant", "printed"),
    [
        ("rf", 1, lambda _, log_snr: jnp.exp(-log_snr / 2)),
        ("edm/rf", 4, lambda t, _: (1 - t) * t * ((t / (1 - t)) ** 2 + 0.25)),
        ("eps/cos", 1 / np.pi, lambda _, log_snr: cosine_noise_weight(log_snr)),
        ("v/cos", 2 / np.pi, lambda _, log_snr: cosine_v_weight(log_snr)),
        (
            "edm(-1.20,1.20)",
            8,
            lambda _, log_snr: edm_weight(
                log_snr, log_sigma_mean=-1.2, log_sigma_std=1.2
            ),
        ),
        (
            "rf/lognorm(0.50,0.60)",
            1,
            lambda t, _: resampled_weight(t, density=LogitNormal(0.5, 0.6)),
        ),
    ],
)
def test_printed_weights_are_what_training_amounts_to(name, constant, printed):
    formulation = parse(name)
    t = jnp.asarray(TIMESTEPS)
    weight = formulation_weight(formulation, t)
    expected = constant * printed(t, formulation.path.log_snr(t))
    np.testing.assert_allclose(weight, expected, rtol=1e-9)
    assert np.abs(weight / formulation_weight(parse("rf/cosmap"), t) - 1).max() > 0.1


def test_cosine_noise_weight_is_a_sine_of_t():
    t = jnp.linspace(0.05, 0.95, 19)
    weight = cosine_noise_weight(COSINE.log_snr(t))
    np.testing.assert_allclose(weight, jnp.sin(jnp.pi * t), rtol=1e-4)


@pytest.mark.parametrize("name", ["rf", "eps/cos", "v/linear", "edm/cos", "eps/linear"])
def test_weights_are_not_nan_at_the_ends(name):
    weight = formulation_weight(parse(name), jnp.array([0.0, 1.0]))
    assert not jnp.isnan(weight).any()
