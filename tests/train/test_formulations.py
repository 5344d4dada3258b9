# SPDX-License-Identifier: Apache-2.0
"""Every formulation of the paper trains, validates and samples with the same parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.evaluation.sample import SampleConfig, sample_latents, sample_noise
from rfjax.evaluation.validation import losses_at_levels
from rfjax.flow.formulations import REGISTRY, parse
from rfjax.parallel.mesh import MeshConfig, make_mesh
from rfjax.train.ema import EmaConfig
from rfjax.train.optimizer import OptimizerConfig, make_optimizer
from rfjax.train.state import TrainState
from rfjax.train.step import make_train_step

FAMILIES = ("eps/linear", "edm(-1.20,1.20)")


def train(network, params, batch, *, formulation, num_steps):
    """Repeats one batch with fixed noise; returns (first loss, last loss, params)."""
    optimizer = make_optimizer(OptimizerConfig(), model=network)
    step = jax.jit(
        make_train_step(
            network,
            optimizer=optimizer,
            formulation=formulation,
            shift=1.0,
            ema=EmaConfig(),
            seed=0,
            micro_batches=1,
        )
    )
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=params,
        opt_state=optimizer.init(params),
    )
    losses = []
    for _ in range(num_steps):
        state, metrics = step(state, batch, 3e-3)
        # Step 0 again is the same noise again: the fall of the loss is not luck.
        state = dataclasses.replace(state, step=jnp.zeros((), jnp.int32))
        losses.append(float(metrics["loss"]))
    return losses[0], losses[-1], state.params


def check(name, network, params, batch, *, num_steps):
    formulation = parse(name)
    first, last, params = train(
        network, params, batch, formulation=formulation, num_steps=num_steps
    )
    assert np.isfinite(first)
    assert last < first, name
    levels = losses_at_levels(network, params, batch, formulation)
    assert np.isfinite(levels).all(), name
    drawn = sample_latents(
        network,
        params,
        sample_noise(0, num_samples=8, latent_shape=(8, 8, 4)),
        batch.conditioning,
        unconditional=jax.tree.map(lambda leaf: leaf[:1], batch.conditioning),
        formulation=formulation,
        config=SampleConfig(num_steps=4, guidance_scale=2.0),
        mesh=make_mesh(MeshConfig(), devices=jax.devices()[:1]),
    )
    assert np.isfinite(drawn).all(), name


@pytest.mark.parametrize("name", FAMILIES)
def test_far_from_rectified_flow(name, tiny_model, random_params, random_batch):
    network = tiny_model(depth=1)
    check(name, network, random_params(network), random_batch(8), num_steps=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTRY)
def test_all_61(name, tiny_model, random_params, random_batch):
    network = tiny_model(depth=1)
    check(name, network, random_params(network), random_batch(8), num_steps=4)
