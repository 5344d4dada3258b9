# SPDX-License-Identifier: Apache-2.0
"""The optimal networks for Gaussian data, written without the code under test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.types import Batch, Conditioning

# At least one formulation of each family.
_NAMES = [
    "rf",
    "rf/lognorm(0.00,1.00)",
    "rf/mode(1.29)",
    "rf/cosmap",
    "eps/linear",
    "v/linear",
    "eps/cos",
    "v/cos",
    "edm(-1.20,1.20)",
    "edm(0.60,0.60)",
    "edm/rf",
    "edm/cos",
]


class GaussianOracle:
    """What a perfect network of a formulation returns for latents ~ N(0, std^2)."""

    def __init__(self, name, std):
        self.kind = name.split("/")[0].split("(")[0]
        self.std = std

    def path(self, t):
        """(a, b) of the family, at the log-SNR that rf has at t."""
        if self.kind == "rf":
            return 1 - t, t
        t = jnp.clip(t, 1e-6, 1 - 1e-6)
        sigma = t / (1 - t)
        if self.kind == "edm":
            return jnp.ones_like(t), sigma
        norm = jnp.sqrt(1 + sigma**2)  # variance preserving
        return 1 / norm, sigma / norm

    def weights(self, t):
        """The target as (of_latents, of_noise), and the input scale."""
        a, b = self.path(t)
        if self.kind == "rf":
            return -jnp.ones_like(t), jnp.ones_like(t), jnp.ones_like(t)
        if self.kind == "eps":
            return jnp.zeros_like(t), jnp.ones_like(t), jnp.ones_like(t)
        if self.kind == "v":
            return -b, a, jnp.ones_like(t)
        # The preconditioning of Karras et al. 2022, table 1, with sigma_data = 0.5.
        root = jnp.sqrt(b**2 + 0.25)
        c_skip, c_out, c_in = 0.25 / root**2, b * 0.5 / root, 1 / root
        return (1 - c_skip) / c_out, -c_skip * b / c_out, c_in

    def __call__(self, network_input, timesteps, conditioning):
        """E[target | z] from E[latents | z] and E[noise | z]."""
        a, b = self.path(timesteps)
        of_latents, of_noise, scale = self.weights(timesteps)
        gain = (of_latents * a * self.std**2 + of_noise * b) / scale
        gain /= a**2 * self.std**2 + b**2
        return gain[:, None, None, None] * network_input

    def loss(self, timesteps):
        """Var[target | z], the smallest expected loss."""
        a, b = self.path(timesteps)
        of_latents, of_noise, _ = self.weights(timesteps)
        total = of_latents**2 * self.std**2 + of_noise**2
        explained = (of_latents * a * self.std**2 + of_noise * b) ** 2
        return total - explained / (a**2 * self.std**2 + b**2)


@pytest.fixture
def x64():
    """Float64 for one test, to distinguish a wrong formula from a rounding error."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=_NAMES)
def formulation_name(request):
    return request.param


@pytest.fixture(scope="session")
def gaussian_oracle():
    return GaussianOracle


@pytest.fixture(scope="session")
def make_batch():
    """Gaussian latents of a given standard deviation; the conditioning is unused."""

    def make(shape, *, std=1.0, seed=0):
        latents = std * np.random.default_rng(seed).standard_normal(shape)
        batch_size = shape[0]
        return Batch(
            latents=jnp.asarray(latents, jnp.float32),
            conditioning=Conditioning(
                context=jnp.ones((batch_size, 3, 4)), pooled=jnp.ones((batch_size, 2))
            ),
            sample_index=jnp.arange(batch_size, dtype=jnp.uint32),
        )

    return make
