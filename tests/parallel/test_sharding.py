# SPDX-License-Identifier: Apache-2.0
"""Attention with the image tokens split over the mesh, against one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.models import attention
from rfjax.parallel.mesh import MeshConfig, make_mesh
from rfjax.parallel.sharding import MeshLayout

AXES = {"slice": 2, "data": 1, "fsdp": 1, "tensor": 2, "sequence": 2}


def streams(seed):
    """8 image and 5 text tokens: `sequence` divides the first number only."""
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.normal(size=(2, tokens, 4, 64)), jnp.float32)
        for tokens in (8, 5)
    )


@pytest.mark.parametrize("implementation", ["xla", "fused", "splash", "cudnn"])
@pytest.mark.parametrize("num_queries", [1, 2])
def test_split_queries_attend_to_all_keys(implementation, num_queries, monkeypatch):
    """Forward and gradients: those of keys and values are sums over all queries."""
    if implementation != "xla":
        monkeypatch.setattr(attention, "_runs_kernel", lambda *args: True)
        fused = attention.fused_attention.attend
        monkeypatch.setattr(
            attention.fused_attention,
            "attend",
            lambda *args: fused(*args[:-1], True),  # interpreted
        )
        monkeypatch.setattr(
            attention,
            "splash_attention",
            functools.partial(attention.splash_attention, interpret=True),
        )
        monkeypatch.setattr(
            attention,
            "cudnn_attention",
            functools.partial(attention.cudnn_attention, library="xla"),
        )
    queries, keys, values, weights = map(streams, range(4))
    queries = queries[:num_queries]

    def value(queries, keys, values, **options):
        outputs = attention.attend_streams(queries, keys, values, **options)
        return sum(jnp.sum(o * w) for o, w in zip(outputs, weights, strict=False))

    def value_and_grad(**options):
        function = functools.partial(value, **options)
        return jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2)))(
            queries, keys, values
        )

    layout = MeshLayout(make_mesh(MeshConfig(**AXES)))
    actual = value_and_grad(implementation=implementation, layout=layout)
    monkeypatch.undo()
    expected = value_and_grad()
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, atol=3e-5, rtol=1e-5),
        actual,
        expected,
    )
    assert np.abs(expected[1][1][0]).max() > 0.1  # control: there are gradients
