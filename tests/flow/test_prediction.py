# SPDX-License-Identifier: Apache-2.0
"""Conversions at fixed z: round trips, error ratios, and EDM as its paper writes it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.flow.path import COSINE, EDM, LDM_LINEAR, RECTIFIED_FLOW, per_example
from rfjax.flow.prediction import PREDICTIONS, convert, separate, target

PATHS = [RECTIFIED_FLOW, COSINE, EDM(-1.2, 1.2), LDM_LINEAR]
PAIRS = list(itertools.permutations(PREDICTIONS, 2))


def _example(path, dtype, margin):
    """Latents, noise, z, a, b at timesteps that stay `margin` away from both ends."""
    latents, noise = np.random.default_rng(0).standard_normal((2, 50, 7)).astype(dtype)
    timesteps = jnp.linspace(margin, 1 - margin, 50, dtype=dtype)
    a, b = (per_example(c, latents) for c in path.coefficients(timesteps))
    return latents, noise, a * latents + b * noise, a, b


@pytest.mark.parametrize(("source", "destination"), PAIRS)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_conversions_round_trip(path, source, destination):
    # Near an end one of the two is amplified, hence the margin.
    for dtype, margin, atol in [(np.float64, 0.05, 1e-12), (np.float32, 0.2, 1e-5)]:
        with jax.enable_x64(dtype is np.float64):
            latents, noise, z, a, b = _example(path, dtype, margin)
            known = {"noisy_latents": z, "a": a, "b": b}
            there = target(source, latents=latents, noise=noise, a=a, b=b)
            here = convert(there, source=source, destination=destination, **known)
            expected = target(destination, latents=latents, noise=noise, a=a, b=b)
            back = convert(here, source=destination, destination=source, **known)
            assert here.dtype == dtype
        np.testing.assert_allclose(here, expected, rtol=atol, atol=atol)
        np.testing.assert_allclose(back, there, rtol=atol, atol=atol)
        assert np.abs(here - there).max() > 0.1  # they are different predictions


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_common_factor_of_a_and_b_changes_nothing(name):
    latents, noise, z, a, b = _example(RECTIFIED_FLOW, np.float32, 0.1)
    scaled = target(name, latents=latents, noise=noise, a=7 * a, b=7 * b)
    value = target(name, latents=latents, noise=noise, a=a, b=b)
    np.testing.assert_allclose(scaled, value, rtol=1e-5, atol=1e-6)
    scale = PREDICTIONS[name].input_scale
    np.testing.assert_allclose(scale(7 * a, 7 * b) * 7 * z, scale(a, b) * z, rtol=1e-5)


@pytest.mark.usefixtures("x64")
# Squared errors per squared error of the noise, section 1 and appendix A.
@pytest.mark.parametrize(
    ("path", "name", "ratio"),
    [
        (COSINE, "latents", lambda a, b: b**2 / a**2),
        (COSINE, "v", lambda a, b: 1 / a**2),
        (RECTIFIED_FLOW, "velocity", lambda a, b: 1 / (1 - b) ** 2),
        (EDM(-1.2, 1.2), "F", lambda a, b: (b**2 + 0.25) / 0.25),
    ],
)
def test_error_ratios(path, name, ratio):
    _, noise, z, a, b = _example(path, np.float64, 0.05)
    known = {"source": "noise", "destination": name, "noisy_latents": z}
    exact = convert(noise, a=a, b=b, **known)
    wrong = convert(noise + 0.1, a=a, b=b, **known)
    squared = np.asarray((wrong - exact) ** 2) / 0.1**2
    expected = np.broadcast_to(ratio(a, b), squared.shape)
    np.testing.assert_allclose(squared, expected, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_f_is_the_preconditioned_target_of_edm():
    """Karras et al. 2022, table 1: D = c_skip z + c_out F(c_in z), sigma_data 0.5."""
    path = EDM(-1.2, 1.2)
    latents, noise, z, a, sigma = _example(path, np.float64, 0.05)
    c_skip = 0.25 / (sigma**2 + 0.25)
    c_out = 0.5 * sigma / np.sqrt(sigma**2 + 0.25)
    f = target("F", latents=latents, noise=noise, a=a, b=sigma)
    np.testing.assert_allclose(c_skip * z + c_out * f, latents, atol=1e-12)
    c_in = PREDICTIONS["F"].input_scale(a, sigma)
    np.testing.assert_allclose(c_in, 1 / np.sqrt(sigma**2 + 0.25), rtol=1e-12)
    recovered, _ = separate("F", f, noisy_latents=z, a=a, b=sigma)
    np.testing.assert_allclose(recovered, latents, atol=1e-12)
    assert np.abs(z + c_out * f - latents).max() > 0.1  # c_skip matters


@pytest.mark.parametrize("name", ["velocity", "v", "F"])
def test_both_ends_are_finite(name):
    latents, noise = jnp.ones((2, 3)), jnp.full((2, 3), 2.0)
    b = jnp.array([[0.0], [1.0]])
    z = (1 - b) * latents + b * noise
    prediction = target(name, latents=latents, noise=noise, a=1 - b, b=b)
    recovered = separate(name, prediction, noisy_latents=z, a=1 - b, b=b)
    np.testing.assert_allclose(recovered, (latents, noise), rtol=1e-6)
