# SPDX-License-Identifier: Apache-2.0
"""The activations of an MMDiT that should move alike at every depth.

Dims: B batch, I J image tokens, N heads, K head dim.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from rfjax.models.base import HEAD_DIM
from rfjax.models.mmdit.network import MMDiT
from rfjax.types import Conditioning


def activations(
    network: MMDiT,
    noisy_latents: jax.Array,
    timesteps: jax.Array,
    conditioning: Conditioning,
) -> dict[str, jax.Array]:
    """Every entry of `models.base.ACTIVATIONS`; blocks are represented by the last."""
    embedded, text, vector, mask = network.embed(noisy_latents, timesteps, conditioning)
    streams = network.apply_stacked(embedded, text, vector, mask)
    (stream, _), outputs = nnx.capture(
        network.last_block, nnx.Intermediate, method_outputs=nnx.Intermediate
    )(*streams, vector, mask)
    image = nnx.to_pure_dict(outputs)["image"]

    def output_of(layer: str) -> jax.Array:
        """What a layer of the last block's image stream returned."""
        return image[layer]["__call__"][-1]  # of the layer, not of one it inherits

    def heads_of(layer: str) -> jax.Array:
        """Queries or keys [B, I, N, K], as attention sees them."""
        normed = f"{layer}_norm" if network.config.qk_norm else layer
        return output_of(normed).reshape(*embedded.shape[:2], -1, HEAD_DIM)

    shift, scale, _, mlp_shift, mlp_scale, *_ = output_of("modulation")
    logits = jnp.einsum("BINK,BJNK->BNIJ", heads_of("query"), heads_of("key"))
    return {
        "conditioning": vector,
        "embedding": embedded,
        "modulation": jnp.stack([shift, scale, mlp_shift, mlp_scale]),
        "logits": logits / math.sqrt(HEAD_DIM),
        "attention": output_of("out"),
        "mlp": output_of("mlp_out"),
        "stream": stream,
        "velocity": network(noisy_latents, timesteps, conditioning),
    }
