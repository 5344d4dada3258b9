# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of an MMDiT, from its config alone.

Convention: a multiply-add counts 2; matrix products only (norms, softmax and other
elementwise work are left out). adaLN works once per image, not once per token.
"""

from __future__ import annotations

from rfjax.models.embeddings import NUM_FREQUENCIES
from rfjax.models.mmdit.config import MMDiTConfig


def forward_flops(
    config: MMDiTConfig, *, latent_shape: tuple[int, int, int], context_length: int
) -> int:
    """Exact FLOPs of one forward pass for one example.

    Args:
      config: the model.
      latent_shape: (H, W, C) of the latents.
      context_length: T, text tokens, pads included.
    """
    width, depth = config.width, config.depth
    image = config.num_image_tokens(latent_shape)
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
