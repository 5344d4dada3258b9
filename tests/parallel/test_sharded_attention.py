# SPDX-License-Identifier: Apache-2.0
"""Attention kernels run shard by shard, on eight simulated devices.

They are taken for kernels of the CPU here, in their plain form.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.models import attention
from rfjax.parallel.mesh import MeshConfig, make_mesh
from rfjax.parallel.sharding import MeshLayout
from rfjax.types import ONE_DEVICE

PLAIN_FORMS = {
    "splash": functools.partial(attention.splash_attention, interpret=True),
    "cudnn": functools.partial(attention.cudnn_attention, library="xla"),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axes", [{"data": 8}, {"tensor": 2, "sequence": 4}])
@pytest.mark.parametrize("kernel", PLAIN_FORMS)
def test_shards_of_a_kernel_equal_the_whole(kernel, axes, masked, monkeypatch):
    monkeypatch.setitem(attention._PLATFORMS, kernel, "cpu")
    shapes = set()

    def plain_form(query, *rest):
        shapes.add(query.shape)
        return PLAIN_FORMS[kernel](query, *rest)

    monkeypatch.setattr(attention, f"{kernel}_attention", plain_form)
    mesh = make_mesh(MeshConfig(**{"data": 1, **axes}))
    rng = np.random.default_rng(0)

    def draw():  # 8 image tokens and 5 of text
        return tuple(
            jnp.asarray(rng.normal(size=(8, tokens, 2, 64)), jnp.bfloat16)
            for tokens in (8, 5)
        )

    streams = draw(), draw(), draw()
    mask = jnp.arange(13)[None, :] < jnp.arange(9, 17)[:, None] if masked else None

    def attend(layout):
        return jax.jit(
            lambda *streams: attention.attend_streams(
                *streams, mask_BS=mask, implementation=kernel, layout=layout
            )
        )(*streams)

    expected = attend(ONE_DEVICE)
    for actual, wanted in zip(attend(MeshLayout(mesh)), expected, strict=True):
        np.testing.assert_allclose(
            actual.astype(jnp.float32), wanted.astype(jnp.float32), atol=0.02
        )
    # Each device has a part: the joined streams, or its image tokens and all text.
    parts = {(1, 13, 2, 64)} if "data" in axes else {(8, 2, 1, 64), (8, 5, 1, 64)}
    assert shapes == parts
    other = attention.attend_streams(*streams[::-1], mask_BS=mask)[0]  # control
    assert np.abs((other - expected[0]).astype(jnp.float32)).max() > 0.5
