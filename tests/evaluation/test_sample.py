# SPDX-License-Identifier: Apache-2.0
"""Sampling some examples at a time over a mesh gives what sampling one by one does."""

import dataclasses

import jax
import numpy as np
import pytest

from rfjax.evaluation.sample import SampleConfig, sample_latents, sample_noise
from rfjax.flow.formulations import parse
from rfjax.parallel.mesh import MeshConfig, make_mesh
from rfjax.parallel.sharding import MeshLayout, state_shardings

RF = parse("rf")


@pytest.mark.parametrize("num_examples", [1, 5])
def test_batches_over_a_mesh_equal_one_at_a_time(
    tiny_model, random_params, random_batch, num_examples
):
    """Five examples, two at a time over two devices: the last batch is filled up."""
    config = SampleConfig(num_steps=3, guidance_scale=2.0, batch_size=2)
    alone = tiny_model()
    params = random_params(alone)
    texts = jax.tree.map(np.asarray, random_batch(num_examples).conditioning)
    empty = jax.tree.map(lambda leaf: np.zeros_like(leaf[:1]), texts)
    noise = sample_noise(0, num_samples=num_examples, latent_shape=(8, 8, 4))
    options = {"unconditional": empty, "formulation": RF, "config": config}
    # One at a time on one device.
    single = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    whole = options | {"config": dataclasses.replace(config, batch_size=1)}
    expected = sample_latents(alone, params, noise, texts, mesh=single, **whole)

    mesh = make_mesh(MeshConfig(data=2, fsdp=2), devices=jax.devices()[:4])
    model = tiny_model(layout=MeshLayout(mesh))
    shardings = state_shardings(params, params=params, dims=model.dims, mesh=mesh)
    placed = jax.device_put(params, shardings)
    drawn = sample_latents(model, placed, noise, texts, mesh=mesh, **options)
    assert drawn.shape == (num_examples, 8, 8, 4)
    np.testing.assert_allclose(drawn, expected, atol=1e-4)
    other = sample_latents(model, placed, -noise, texts, mesh=mesh, **options)
    assert np.abs(drawn - other).max() > 0.1  # control
