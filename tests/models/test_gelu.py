# SPDX-License-Identifier: Apache-2.0
"""GELU and its own derivative: bfloat16 against JAX's, float32 against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from rfjax.models.layers import gelu


def test_bfloat16_gelu_and_its_slope_equal_the_formula():
    points = jnp.linspace(-6, 6, 97).astype(jnp.bfloat16)
    exact = points.astype(jnp.float32)
    ones = jnp.ones_like(points)
    value, slope = jax.jvp(gelu, (points,), (ones,))
    expected, expected_slope = jax.jvp(
        lambda x: jax.nn.gelu(x, approximate=True),
        (exact,),
        (ones.astype(jnp.float32),),
    )
    assert value.dtype == slope.dtype == jnp.bfloat16
    # One rounding to 8 bits of mantissa; in the tail 1 + tanh cancels in float32.
    for actual, wanted in ((value, expected), (slope, expected_slope)):
        np.testing.assert_allclose(
            actual.astype(jnp.float32), wanted, rtol=2**-8, atol=1e-5
        )
    assert np.abs(value.astype(jnp.float32) - jax.nn.relu(exact)).max() > 0.1  # control


def test_float32_gelu_and_its_slope_equal_pytorch():
    points = np.linspace(-6, 6, 97, dtype=np.float32)
    inputs = torch.tensor(points, requires_grad=True)
    expected = torch.nn.functional.gelu(inputs, approximate="tanh")
    expected.sum().backward()
    np.testing.assert_allclose(
        gelu(jnp.asarray(points)), expected.detach(), rtol=1e-5, atol=1e-6
    )
    slopes = jax.grad(lambda x: gelu(x).sum())(jnp.asarray(points))
    # In the tail 1 - tanh**2 cancels in float32.
    np.testing.assert_allclose(slopes, inputs.grad, rtol=1e-5, atol=5e-6)
