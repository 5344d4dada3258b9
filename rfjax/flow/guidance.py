# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance: a guided velocity_fn from a velocity_fn."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rfjax.errors import UserError
from rfjax.types import Conditioning, VelocityFn


def guided(
    velocity_fn: VelocityFn, *, unconditional: Conditioning, guidance_scale: float
) -> VelocityFn:
    """Returns v_u + guidance_scale (v_c - v_u), from one call on a doubled batch.

    Latents and noise are linear in the velocity at fixed noisy latents, so guiding the
    velocity also guides any other prediction.

    Args:
      velocity_fn: the velocity to guide.
      unconditional: conditioning of v_u, usually the embedding of the empty caption,
        for B examples or for one that all share. Context of the same length and mask
        (or none) as the conditioning of v_c.
      guidance_scale: a Python number: 0 is unconditional, 1 unguided (`velocity_fn`
        itself is returned); larger values follow the text more closely.

    Source: Ho and Salimans 2022, arXiv:2207.12598.

    Example:
      The velocity of this model is its text vector, 1 for the caption and 0 without:

      >>> def velocity_fn(noisy_latents, timesteps, conditioning):
      ...     text = conditioning.pooled[:, :, None, None]
      ...     return jnp.broadcast_to(text, noisy_latents.shape)
      >>> empty = Conditioning(context=jnp.zeros([1, 1, 1]), pooled=jnp.zeros([1, 1]))
      >>> caption = Conditioning(context=jnp.zeros([1, 1, 1]), pooled=jnp.ones([1, 1]))
      >>> velocity = guided(velocity_fn, unconditional=empty, guidance_scale=5.0)
      >>> velocity(jnp.zeros([1, 1, 1, 1]), jnp.ones([1]), caption).item()
      5.0
    """
    if guidance_scale == 1:
        return velocity_fn

    def velocity(
        noisy_latents: jax.Array, timesteps: jax.Array, conditioning: Conditioning
    ) -> jax.Array:
        """The guided velocity."""
        doubled = _joined(conditioning, unconditional)
        both = velocity_fn(
            jnp.concatenate([noisy_latents, noisy_latents]),
            jnp.concatenate([timesteps, timesteps]),
            doubled,
        )
        conditional, unconditional_velocity = jnp.split(both, 2)
        difference = conditional - unconditional_velocity
        return unconditional_velocity + guidance_scale * difference

    return velocity


def _joined(conditioning: Conditioning, unconditional: Conditioning) -> Conditioning:
    """Concatenates two conditionings; the second may hold a single example."""
    _check_same_layout(conditioning, unconditional)

    def join(first: jax.Array, second: jax.Array) -> jax.Array:
        """Appends the second, repeated for each example where it is a single one."""
        repeated = jnp.broadcast_to(second, (len(first), *second.shape[1:]))
        return jnp.concatenate([first, repeated.astype(first.dtype)])

    return jax.tree.map(join, conditioning, unconditional)


def _check_same_layout(conditioning: Conditioning, unconditional: Conditioning) -> None:
    """Raises UserError unless both fit in one batch."""
    layouts = [
        {
            "context": value.context.shape[1:],
            "pooled": value.pooled.shape[1:],
            "masked": value.context_mask is not None,
        }
        for value in (conditioning, unconditional)
    ]
    if layouts[0] != layouts[1]:
        raise UserError(
            "unconditional must have the layout of the conditioning per example, "
            f"{layouts[0]}, got {layouts[1]}; encode the empty caption the same way."
        )
