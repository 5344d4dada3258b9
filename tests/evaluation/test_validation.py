# SPDX-License-Identifier: Apache-2.0
"""val_v1: a number of parameters and samples alone."""

import dataclasses

import jax
import numpy as np
import pytest

from rfjax.evaluation.sample import SampleConfig, sample_latents, sample_noise
from rfjax.evaluation.validation import make_validation, protocol_noise
from rfjax.flow.formulations import parse
from rfjax.parallel.mesh import MeshConfig, make_mesh

RF = parse("rf")


def in_batches(batch, size):
    """One pass in batches of `size`, the last one filled up with invalid rows."""
    total = len(batch.sample_index)

    def one_pass():
        for start in range(0, total, size):
            rows = np.arange(start, start + size)
            taken = np.minimum(rows, total - 1)
            yield jax.tree.map(lambda leaf: leaf[taken], batch), rows < total  # noqa: B023

    return one_pass


def validate(network, params, batch, *, batch_size, devices=1):
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:devices])
    return make_validation(
        network, formulation=RF, mesh=mesh, batches=in_batches(batch, batch_size)
    )(params)


def test_loss_does_not_depend_on_batches_devices_or_compute_dtype(
    tiny_model, random_params, random_batch
):
    network, batch = tiny_model(), random_batch(21)
    params = random_params(network)
    whole = validate(network, params, batch, batch_size=24)
    assert set(whole) == {"loss", *(f"loss_t{k}" for k in range(8)), "num_samples"}
    assert whole["num_samples"] == 21, "not the three rows that fill the batch"
    for other in (
        validate(network, params, batch, batch_size=4),
        validate(network, params, batch, batch_size=8, devices=8),
        validate(tiny_model(compute_dtype="bfloat16"), params, batch, batch_size=24),
    ):
        for name, value in whole.items():
            assert other[name] == pytest.approx(value, rel=2e-6), name
    # Controls: other parameters, other samples.
    assert validate(network, random_params(network, seed=3), batch, batch_size=24)[
        "loss"
    ] != pytest.approx(whole["loss"], rel=1e-4)
    fewer = jax.tree.map(lambda leaf: leaf[:20], batch)
    assert validate(network, params, fewer, batch_size=24)["loss"] != pytest.approx(
        whole["loss"], rel=1e-4
    )


def test_loss_of_a_fresh_model_by_hand(tiny_model, random_batch):
    """A model that answers 0 has the mean of (noise - latents)^2 at every level."""
    network, batch = tiny_model(), random_batch(6)
    metrics = validate(
        network, jax.jit(network.init)(jax.random.key(0)), batch, batch_size=6
    )
    by_level = [
        np.square(np.asarray(protocol_noise(batch, level=k) - batch.latents)).mean()
        for k in range(8)
    ]
    for k, value in enumerate(by_level):
        assert metrics[f"loss_t{k}"] == pytest.approx(value, rel=1e-5)
    # The mean leaves level 0 out.
    assert metrics["loss"] == pytest.approx(np.mean(by_level[1:]), rel=1e-5)
    assert metrics["loss"] != pytest.approx(np.mean(by_level), rel=1e-5)


def test_noise_is_fixed_by_sample_and_level(random_batch):
    batch = random_batch(4)
    noise = protocol_noise(batch, level=3)
    swapped = jax.tree.map(lambda leaf: leaf[::-1], batch)
    np.testing.assert_array_equal(protocol_noise(swapped, level=3), noise[::-1])
    assert np.abs(protocol_noise(batch, level=4) - noise).max() > 1
    assert np.abs(noise[0] - noise[1]).max() > 1
    # The protocol's numbers must never move: a change is a new protocol.
    np.testing.assert_allclose(
        np.asarray(noise)[0, 0, 0], GOLDEN_NOISE, rtol=1e-5, atol=1e-6
    )


GOLDEN_NOISE = [-1.9521607, -0.8386375, -0.34778789, 0.49315837]


def test_latents_of_a_zero_velocity_are_the_noise(tiny_model, random_batch):
    network, batch = tiny_model(), random_batch(4)
    noise = sample_noise(0, num_samples=4, latent_shape=(8, 8, 4))
    empty = jax.tree.map(lambda leaf: leaf[:1], batch.conditioning)

    def draw(params):
        return sample_latents(
            network,
            params,
            noise,
            batch.conditioning,
            unconditional=empty,
            formulation=RF,
            config=SampleConfig(num_steps=3, guidance_scale=2.0),
            mesh=make_mesh(MeshConfig(), devices=jax.devices()[:1]),
        )

    fresh = jax.jit(network.init)(jax.random.key(0))
    np.testing.assert_allclose(draw(fresh), noise, atol=1e-6)
    trained = jax.tree.map(lambda leaf: leaf + 0.05, fresh)
    assert np.abs(draw(trained) - noise).max() > 1e-2  # control


def test_noise_of_a_sample_does_not_depend_on_how_many():
    few = sample_noise(7, num_samples=2, latent_shape=(4, 4, 3))
    many = sample_noise(7, num_samples=5, latent_shape=(4, 4, 3))
    np.testing.assert_array_equal(few, many[:2])
    assert np.abs(few[0] - few[1]).max() > 0.1
    other = sample_noise(8, num_samples=2, latent_shape=(4, 4, 3))
    assert np.abs(few - other).max() > 0.1


def test_sample_config_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"sample\.guidance_scale must be at least 0"):
        SampleConfig(guidance_scale=-1.0)
    assert dataclasses.replace(SampleConfig(), num_steps=1).num_steps == 1
