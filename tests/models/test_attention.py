# SPDX-License-Identifier: Apache-2.0
"""The attention kernels against plain matrix products, run as plain JAX on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from rfjax.models import attention, fused_attention

HEAD_DIM = 64


def streams(num_heads, *, seed=0):
    """Queries, keys, values of 8 image and 5 text tokens, and a gradient."""
    rng = np.random.default_rng(seed)

    def draw():
        return tuple(
            jnp.asarray(rng.normal(size=(2, tokens, num_heads, HEAD_DIM)), jnp.float32)
            for tokens in (8, 5)
        )

    return draw(), draw(), draw(), draw()


def fused(queries, keys, values):
    rows = jax.tree.map(lambda x: x.reshape(*x.shape[:2], -1), (queries, keys, values))
    outputs = fused_attention.attend(*rows, HEAD_DIM, True)
    return tuple(o.reshape(q.shape) for o, q in zip(outputs, queries, strict=True))


# Three heads fill one and a half blocks of lanes.
@pytest.mark.parametrize("num_heads", [2, 3])
@pytest.mark.parametrize("num_queries", [1, 2])
def test_fused_kernel_equals_plain_products(num_heads, num_queries):
    """Forward and all gradients; with one query as in the last block."""
    queries, keys, values, gradients = streams(num_heads)
    queries, gradients = queries[:num_queries], gradients[:num_queries]
    actual, actual_vjp = jax.vjp(fused, queries, keys, values)
    expected, expected_vjp = jax.vjp(attention.attend_streams, queries, keys, values)
    # float32 throughout; sums of 13 products of order one differ in order alone.
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, atol=3e-6),
        (actual, actual_vjp(gradients)),
        (expected, expected_vjp(gradients)),
    )
    other = fused(queries, jax.tree.map(jnp.flip, keys), values)[0]  # control
    assert np.abs(other - expected[0]).max() > 0.1


def splash(query, key, value, mask):
    return attention.splash_attention(query, key, value, mask, interpret=True)


def cudnn(query, key, value, mask):
    """The call that reaches cuDNN on a GPU, computed by XLA."""
    return attention.cudnn_attention(query, key, value, mask, library="xla")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kernel", [splash, cudnn])
def test_kernels_of_joined_streams_equal_plain_products(kernel, masked):
    queries, keys, values, _ = streams(2)
    query, key, value = (jnp.concatenate(x, axis=1) for x in (queries, keys, values))
    mask = None
    if masked:
        mask = jnp.arange(13)[None, :] < jnp.array([[7], [13]])

    def plain(query, key, value):
        return attention.joint_attention(query, key, value, mask_BS=mask)

    expected = plain(query, key, value)
    np.testing.assert_allclose(kernel(query, key, value, mask), expected, atol=1e-5)
    unmasked = attention.joint_attention(query, key, value)
    assert (np.abs(unmasked - expected).max() > 0.1) == masked  # control


@pytest.mark.parametrize("tokens", [256 + 154, 256 + 77])  # 333: odd
@pytest.mark.parametrize("masked", [False, True])
def test_cudnn_accepts_the_call_and_its_gradient(masked, tokens, monkeypatch):
    """Lowered for a GPU that is not there: JAX checks shapes and calls the kernels."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    shape = jax.ShapeDtypeStruct((2, tokens, 6, HEAD_DIM), jnp.bfloat16)
    mask = jax.ShapeDtypeStruct((2, tokens), jnp.bool_) if masked else None

    def total(query, key, value, mask):
        return attention.cudnn_attention(query, key, value, mask).sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    text = (
        gradient.trace(shape, shape, shape, mask)
        .lower(lowering_platforms=("cuda",))
        .as_text()
    )
    bias = "ScaleBias" if masked else ""
    assert f"@__cudnn$fmha{bias}Softmax(" in text
    assert f"@__cudnn$fmha{bias}SoftmaxBackward(" in text


@pytest.mark.parametrize("implementation", ["fused", "splash", "cudnn"])
def test_kernels_take_the_plain_way_off_the_tpu(implementation):
    queries, keys, values, _ = streams(2)
    expected = attention.attend_streams(queries, keys, values)
    actual = attention.attend_streams(
        queries, keys, values, implementation=implementation
    )
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
