# SPDX-License-Identifier: Apache-2.0
"""GELU in bfloat16, with its own derivative, against JAX's in float32."""

import jax
import jax.numpy as jnp
import numpy as np

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


def test_float32_gelu_is_that_of_jax():
    points = jnp.linspace(-6, 6, 97)
    np.testing.assert_array_equal(gelu(points), jax.nn.gelu(points, approximate=True))
