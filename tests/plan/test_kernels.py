# SPDX-License-Identifier: Apache-2.0
"""FLOPs of kernels that declare none."""

import jax
import jax.numpy as jnp
import pytest

from rfjax.models import attention
from rfjax.plan.kernels import undeclared_flops
from rfjax.plan.traced_flops import traced_flops


def test_products_of_splash_attention_are_counted_by_name():
    query, key = (3, 2, 256, 64), (3, 2, 128, 64)
    once = 2 * 3 * 2 * 256 * 128 * 64
    path = "jit(step)/shard_map/splash_mha_{}/pallas_call"
    forward = path.format("fwd_segmented_residuals")
    backward = path.format("dkv_segmented_no_residuals")
    assert undeclared_flops(forward, [query, key, key]) == 2 * once
    assert undeclared_flops(backward, [query, key, key]) == 5 * once
    assert undeclared_flops("another kernel", [query, key, key]) == 0


def test_a_traced_splash_kernel_does_the_padded_products():
    """1,100 tokens in two blocks of 640: forward 2 products, backward 5."""
    array = jax.ShapeDtypeStruct((2, 1100, 4, 64), jnp.bfloat16)
    mask = jnp.ones((2, 1100), bool)

    def attend(query, key, value):
        return attention.splash_attention(query, key, value, mask).sum()

    once = 2 * 2 * 4 * 1280 * 1280 * 64
    assert traced_flops(attend, array, array, array) == 2 * once
    with_gradients = traced_flops(jax.grad(attend, (0, 1, 2)), array, array, array)
    # and the sums of output times gradient, a row each, outside the kernel
    assert with_gradients == pytest.approx(7 * once, rel=1e-3)
