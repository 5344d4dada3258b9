# SPDX-License-Identifier: Apache-2.0
"""Parameters and floating-point operations of an MMDiT, from its config alone.

Convention: a multiply-add counts 2; matrix products only (norms, softmax and other
elementwise work are left out); training costs 3 forward passes, recomputation by
remat not counted. adaLN works once an image, not once a token.
"""

from __future__ import annotations

import functools
from typing import Any

import jax

from rfjax.models.embeddings import NUM_FREQUENCIES
from rfjax.models.mmdit import MMDiTConfig, Network


def num_params(config: MMDiTConfig, *, adaln: bool = True) -> int:
    """Number of parameters, with or without the adaLN projections (a third of all).

    Example:
      >>> f"{num_params(MMDiTConfig(depth=38)):,}"
      '8,056,617,792'
    """
    return sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(_abstract_params(config))
        if adaln or not any(entry.key == "modulation" for entry in path)
    )


@functools.cache
def _abstract_params(config: MMDiTConfig) -> Any:
    """Kept: tracing takes a quarter of a second, and a sweep asks for every cell."""
    return Network(config).abstract_params()


def num_image_tokens(config: MMDiTConfig, *, latent_shape: tuple[int, int, int]) -> int:
    """Tokens of one image with latents (H, W, C)."""
    height, width, _ = latent_shape
    return (height // config.patch_size) * (width // config.patch_size)


def forward_flops_per_sample(
    config: MMDiTConfig, *, latent_shape: tuple[int, int, int], context_length: int
) -> int:
    """Exact FLOPs of one forward pass for one example.

    Args:
      config: the model.
      latent_shape: (H, W, C) of the latents.
      context_length: T, text tokens, pads included.
    """
    width, depth = config.width, config.depth
    image = num_image_tokens(config, latent_shape=latent_shape)
    text = context_length
    tokens = image + text
    square = width * width
    # qkv 3, out 1, MLP 4 + 4; the last block reads only keys and values of the text.
    streams = 12 * square * (depth * image + (depth - 1) * text) + 2 * square * text
    # query x key and weights x value; the last block has image queries only.
    attention = 2 * tokens * width * ((depth - 1) * tokens + image)
    modulation = square * (6 * depth + 6 * (depth - 1) + 2 + 2)
    # The image-only attention of one block: qkv and out, two products, 3 modulations.
    alone = 4 * square * image + 2 * image * image * width + 3 * square
    dual = config.dual_attention_blocks * alone
    embedders = (2 * NUM_FREQUENCIES + config.pooled_dim) * width + 2 * square
    patches = 2 * config.patch_dim * width * image  # in and out
    context = config.context_dim * width * text
    return 2 * (streams + attention + modulation + dual + embedders + patches + context)


def train_flops_per_sample(
    config: MMDiTConfig, *, latent_shape: tuple[int, int, int], context_length: int
) -> int:
    """FLOPs of forward and backward for one example: three forward passes."""
    return 3 * forward_flops_per_sample(
        config, latent_shape=latent_shape, context_length=context_length
    )
