# SPDX-License-Identifier: Apache-2.0
"""Guidance: unguided at 1, linear in the scale, one call of twice the batch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.flow.guidance import guided
from rfjax.types import Conditioning

CONDITIONING = Conditioning(
    context=jnp.arange(24.0).reshape(2, 3, 4), pooled=jnp.array([[1.0], [2.0]])
)
EMPTY = Conditioning(context=jnp.zeros((1, 3, 4)), pooled=jnp.full((1, 1), 0.5))
NOISY_LATENTS = jnp.ones((2, 2, 2, 3))
TIMESTEPS = jnp.array([0.2, 0.7])


def _velocity(noisy_latents, timesteps, conditioning):
    gain = timesteps * conditioning.pooled[:, 0] + conditioning.context.sum(axis=(1, 2))
    return gain[:, None, None, None] * noisy_latents


def _expected(guidance_scale):
    conditional = TIMESTEPS * jnp.array([1, 2]) + jnp.array([66.0, 210.0])
    unconditional = TIMESTEPS * 0.5
    return unconditional + guidance_scale * (conditional - unconditional)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 2.5, 5.0])
def test_guidance_extrapolates_from_the_unconditional_velocity(guidance_scale):
    velocity_fn = guided(_velocity, unconditional=EMPTY, guidance_scale=guidance_scale)
    velocity = velocity_fn(NOISY_LATENTS, TIMESTEPS, CONDITIONING)
    expected = jnp.broadcast_to(
        _expected(guidance_scale)[:, None, None, None], velocity.shape
    )
    np.testing.assert_allclose(velocity, expected, rtol=1e-6)


def test_a_scale_of_1_is_the_velocity_itself():
    assert guided(_velocity, unconditional=EMPTY, guidance_scale=1.0) is _velocity
    assert guided(_velocity, unconditional=EMPTY, guidance_scale=1.1) is not _velocity


def test_one_call_of_twice_the_batch():
    batch_sizes = []

    def velocity_fn(noisy_latents, timesteps, conditioning):
        batch_sizes.append((len(noisy_latents), len(conditioning.context)))
        return _velocity(noisy_latents, timesteps, conditioning)

    guided_fn = guided(velocity_fn, unconditional=EMPTY, guidance_scale=2.0)
    guided_fn(NOISY_LATENTS, TIMESTEPS, CONDITIONING)
    assert batch_sizes == [(4, 4)]


def test_masks_are_joined_too():
    def velocity_fn(noisy_latents, timesteps, conditioning):
        counts = conditioning.context_mask.sum(axis=1).astype(jnp.float32)
        return counts[:, None, None, None] * noisy_latents

    full = dataclasses.replace(CONDITIONING, context_mask=jnp.ones((2, 3), bool))
    short = dataclasses.replace(EMPTY, context_mask=jnp.array([[True, False, False]]))
    guided_fn = guided(velocity_fn, unconditional=short, guidance_scale=2.0)
    velocity = guided_fn(NOISY_LATENTS, TIMESTEPS, full)
    np.testing.assert_allclose(velocity, 5 * NOISY_LATENTS)


@pytest.mark.parametrize(
    "changes",
    [
        {"context": jnp.zeros((1, 2, 4))},
        {"pooled": jnp.zeros((1, 2))},
        {"context_mask": jnp.ones((1, 3), bool)},
    ],
)
def test_another_layout_is_refused(changes):
    other = dataclasses.replace(EMPTY, **changes)
    guided_fn = guided(_velocity, unconditional=other, guidance_scale=2.0)
    with pytest.raises(ValueError, match="unconditional must have the layout of the"):
        guided_fn(NOISY_LATENTS, TIMESTEPS, CONDITIONING)
