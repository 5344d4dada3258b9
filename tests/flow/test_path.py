# SPDX-License-Identifier: Apache-2.0
"""Paths against autodiff, NumPy and the published end values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.flow.path import (
    COSINE,
    DDPM_LINEAR,
    EDM,
    LDM_LINEAR,
    RECTIFIED_FLOW,
    Linear,
    noise_from_velocity,
    noisy_latents,
    velocity_from_noise,
)

PATHS = [RECTIFIED_FLOW, COSINE, EDM(-1.2, 1.2), EDM(0.6, 0.6), LDM_LINEAR, DDPM_LINEAR]
# Off the levels of the discrete schedules, where their log-SNR has a kink.
TIMESTEPS = (np.arange(1, 999, 37) + 0.37) / 999


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_log_snr_is_that_of_the_coefficients_and_falls(path):
    a, b = path.coefficients(TIMESTEPS)
    log_snr = np.asarray(path.log_snr(TIMESTEPS))
    np.testing.assert_allclose(log_snr, np.log(a**2 / b**2), atol=1e-10)
    assert (np.diff(log_snr) < 0).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_log_snr_derivative_is_the_derivative(path):
    derivative = jax.jit(path.log_snr_derivative)(TIMESTEPS)
    autodiff, other = (
        np.asarray(jax.jit(jax.vmap(jax.grad(p.log_snr)))(TIMESTEPS))
        for p in (path, EDM(0.0, 1.0))
    )
    np.testing.assert_allclose(derivative, autodiff, rtol=1e-10)
    assert np.abs(other / autodiff - 1).max() > 0.1


@pytest.mark.parametrize("path", [RECTIFIED_FLOW, COSINE], ids=str)
def test_pure_latents_at_0_and_pure_noise_at_1(path):
    a, b = path.coefficients(jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(a, [1, 0])
    np.testing.assert_array_equal(b, [0, 1])


@pytest.mark.parametrize("path", [COSINE, LDM_LINEAR, DDPM_LINEAR], ids=str)
def test_variance_preserving(path):
    a, b = path.coefficients(jnp.linspace(0, 1, 101))
    np.testing.assert_allclose(a**2 + b**2, np.ones(101), rtol=1e-6)


def test_cosine_goes_a_quarter_circle():
    a, b = COSINE.coefficients(jnp.array([1 / 3, 0.5]))
    np.testing.assert_allclose(a, [np.sqrt(3) / 2, np.sqrt(0.5)], rtol=1e-6)
    np.testing.assert_allclose(b, [0.5, np.sqrt(0.5)], rtol=1e-6)


def test_edm_noise_has_the_quantiles_of_a_lognormal():
    # Standard normal quantiles of 10, 50 and 90 %.
    sigma = np.exp(-1.2 + 1.2 * np.array([-1.2815516, 0, 1.2815516]))
    a, b = EDM(-1.2, 1.2).coefficients(jnp.array([0.1, 0.5, 0.9]))
    np.testing.assert_allclose(b, sigma, rtol=1e-5)
    np.testing.assert_array_equal(a, np.ones(3))


@pytest.mark.parametrize(
    ("path", "first", "last", "beta_root", "betas"),
    [
        (LDM_LINEAR, 7.07, -5.36, 2, (0.00085, 0.012)),
        (DDPM_LINEAR, 9.21, -10.12, 1, (1e-4, 0.02)),
    ],
    ids=["ldm", "ddpm"],
)
def test_linear_schedules(path, first, last, beta_root, betas):
    log_snr = path.log_snr(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(log_snr, [first, last], atol=0.006)
    # The product over levels, term by term, at level 500 of 0..999.
    signal_variance = 1.0
    for s in range(501):
        root = [beta ** (1 / beta_root) for beta in betas]
        signal_variance *= 1 - (root[0] + s / 999 * (root[1] - root[0])) ** beta_root
    a, b = path.coefficients(jnp.array([500 / 999]))
    np.testing.assert_allclose(a, [np.sqrt(signal_variance)], rtol=1e-5)
    np.testing.assert_allclose(b, [np.sqrt(1 - signal_variance)], rtol=1e-5)


def test_linear_log_snr_is_straight_between_levels():
    levels = LDM_LINEAR.log_snr(jnp.array([300, 300.25, 301]) / 999)
    np.testing.assert_allclose(
        levels[1], levels[0] * 0.75 + levels[2] * 0.25, rtol=1e-5
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_rectified_timesteps_have_the_same_log_snr(path):
    t = path.to_rectified(TIMESTEPS)
    log_snr = RECTIFIED_FLOW.log_snr(t)
    np.testing.assert_allclose(log_snr, path.log_snr(TIMESTEPS), atol=1e-10)
    other = RECTIFIED_FLOW.log_snr(EDM(0.0, 1.0).to_rectified(TIMESTEPS))
    assert np.abs(other - log_snr).max() > 0.1


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_nothing_is_nan_or_infinite_at_the_ends(path):
    @jax.jit
    def everything(ends, ones):
        return [
            *path.coefficients(ends),
            path.log_snr(ends),
            path.log_snr_derivative(ends),
            path.to_rectified(ends),
            noisy_latents(path, ones, ones, ends),
            velocity_from_noise(path, ones, noisy_latents=ones, timesteps=ends),
            noise_from_velocity(path, ones, noisy_latents=ones, timesteps=ends),
        ]

    for value in everything(jnp.array([0.0, 1.0]), jnp.ones((2, 3))):
        assert np.isfinite(value).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_velocity_is_the_derivative_of_the_path(path):
    """Eqs. 9 and 10: the form with log_snr' is dz/dt at fixed latents and noise."""

    @jax.jit
    def velocities(latents, noise, timesteps):
        z, derivative = jax.jvp(
            lambda t: noisy_latents(path, latents, noise, t),
            (timesteps,),
            (jnp.ones(27),),
        )
        known = {"noisy_latents": z, "timesteps": timesteps}
        velocity = velocity_from_noise(path, noise, **known)
        return derivative, velocity, noise_from_velocity(path, velocity, **known)

    latents, noise = np.random.default_rng(0).standard_normal((2, 27, 5))
    derivative, velocity, back = velocities(latents, noise, TIMESTEPS)
    np.testing.assert_allclose(velocity, derivative, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(back, noise, rtol=1e-9, atol=1e-9)
    # Without the leading minus the noise comes out wrong.
    assert np.abs(-back - noise).max() > 1


def test_rectified_velocity_is_noise_minus_latents():
    latents, noise = jnp.ones((1, 2)), jnp.full((1, 2), 3.0)
    t = jnp.array([0.25])
    z = noisy_latents(RECTIFIED_FLOW, latents, noise, t)
    np.testing.assert_array_equal(z, [[1.5, 1.5]])
    velocity = velocity_from_noise(RECTIFIED_FLOW, noise, noisy_latents=z, timesteps=t)
    np.testing.assert_allclose(velocity, [[2.0, 2.0]], rtol=1e-6)


def test_bad_parameters():
    with pytest.raises(ValueError, match="edm standard deviation P_s must be a finite"):
        EDM(0.0, 0.0)
    with pytest.raises(ValueError, match="edm mean P_m must be finite, got inf"):
        EDM(float("inf"), 1.0)
    with pytest.raises(ValueError, match=r"must be one of \['ddpm', 'ldm'\], got 'sd'"):
        Linear("sd")
