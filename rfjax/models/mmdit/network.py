# SPDX-License-Identifier: Apache-2.0
"""The multimodal diffusion transformer (MMDiT) of Stable Diffusion 3.

Image and text tokens keep two streams of weights and meet in one joint attention per
block. Source: Esser et al. 2024, arXiv:2403.03206, section 4, figure 2. In SD3.5 medium
the first blocks have a second attention among image tokens alone.

Dims: B batch, H W C latents, I image tokens, T text tokens, S = I + T, D width,
N heads, K head dim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from rfjax import cpu
from rfjax.models import attention, embeddings
from rfjax.models.base import HEAD_DIM
from rfjax.models.embeddings import VectorEmbedder
from rfjax.models.layers import (
    AdaLN,
    Linear,
    Modulation,
    RMSNorm,
    gelu,
    modulated_norm,
    xavier_uniform,
    zeros,
)
from rfjax.models.mmdit.config import MMDiTConfig
from rfjax.models.numerics import COMPUTE_DTYPES, remat
from rfjax.types import Conditioning, Layout


class Projections(nnx.Module):
    """What attention needs of one stream: queries, keys, values and a way back."""

    def __init__(self, config: MMDiTConfig, *, has_out: bool = True, rngs: nnx.Rngs):
        width = config.width
        self.num_heads = config.depth
        self.qk_norm = config.qk_norm
        self.query = Linear(width, width, rngs=rngs)
        self.key = Linear(width, width, rngs=rngs)
        self.value = Linear(width, width, rngs=rngs)
        if config.qk_norm:
            self.query_norm = RMSNorm(HEAD_DIM)
            self.key_norm = RMSNorm(HEAD_DIM)
        if has_out:
            self.out = Linear(width, width, rngs=rngs)

    def queries(self, normed_BSD: jax.Array) -> jax.Array:
        """Maps normed tokens to queries [B, S, N, K]."""
        query_BSNK = self._split_heads(self.query(normed_BSD))
        return self.query_norm(query_BSNK) if self.qk_norm else query_BSNK

    def keys(self, normed_BSD: jax.Array) -> jax.Array:
        """Maps normed tokens to keys [B, S, N, K]."""
        key_BSNK = self._split_heads(self.key(normed_BSD))
        return self.key_norm(key_BSNK) if self.qk_norm else key_BSNK

    def values(self, normed_BSD: jax.Array) -> jax.Array:
        """Maps normed tokens to values [B, S, N, K]."""
        return self._split_heads(self.value(normed_BSD))

    def _split_heads(self, features_BSD: jax.Array) -> jax.Array:
        return features_BSD.reshape(*features_BSD.shape[:2], self.num_heads, HEAD_DIM)


class Stream(Projections):
    """The weights of one stream (image or text) in one block.

    With `pre_only` the stream gives queries, keys and values and ends there: the
    text stream of the last block, whose output is unused.
    """

    def __init__(
        self,
        config: MMDiTConfig,
        *,
        num_modulations: int = 6,
        pre_only: bool = False,
        tokens_name: str,
        rngs: nnx.Rngs,
    ):
        width = config.width
        self.tokens_name = tokens_name  # of its tokens in the sharding rules
        self.modulation = AdaLN(width, 2 if pre_only else num_modulations, rngs=rngs)
        super().__init__(config, has_out=not pre_only, rngs=rngs)
        if not pre_only:
            self.mlp_in = Linear(width, 4 * width, rngs=rngs)
            self.mlp_out = Linear(4 * width, width, rngs=rngs)

    def finish(
        self,
        tokens_BSD: jax.Array,
        attended_BSNK: jax.Array,
        *,
        attention_gate: jax.Array,
        mlp: Modulation,
        layout: Layout,
    ) -> jax.Array:
        """Adds the gated attention, then the gated MLP, to the stream."""
        attended = self.out(attended_BSNK.reshape(tokens_BSD.shape))
        tokens_BSD = tokens_BSD + attention_gate * attended
        normed = modulated_norm(tokens_BSD, shift=mlp.shift, scale=mlp.scale)
        hidden = gelu(self.mlp_in(normed))
        hidden = layout(hidden, ("batch", self.tokens_name, "mlp"))
        tokens_BSD = tokens_BSD + mlp.gate * self.mlp_out(hidden)
        return layout(tokens_BSD, ("batch", self.tokens_name, "embed_activation"))


class MMDiTBlock(nnx.Module):
    """Joint attention between the streams, then one MLP each (figure 2b).

    With `dual_attention` the image tokens also attend to themselves alone, under a
    their own modulation.
    """

    def __init__(
        self,
        config: MMDiTConfig,
        *,
        rngs: nnx.Rngs,
        layout: Layout,
        context_pre_only: bool = False,
        dual_attention: bool = False,
    ):
        self.attention = config.attention
        self.layout = layout
        self.context_pre_only = context_pre_only
        self.dual_attention = dual_attention
        num_modulations = 9 if dual_attention else 6
        self.image = Stream(
            config,
            num_modulations=num_modulations,
            tokens_name="image_tokens",
            rngs=rngs,
        )
        if dual_attention:
            self.image_only = Projections(config, rngs=rngs)
        self.text = Stream(
            config, pre_only=context_pre_only, tokens_name="text_tokens", rngs=rngs
        )

    def __call__(
        self,
        image_BID: jax.Array,
        text_BTD: jax.Array,
        conditioning_BD: jax.Array,
        mask_BS: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the two streams after the block; a pre-only text stream ends."""
        shift, scale, *image_rest = self.image.modulation(conditioning_BD)
        image_rest, dual = image_rest[:4], image_rest[4:]
        normed_image = modulated_norm(image_BID, shift=shift, scale=scale)
        shift, scale, *text_rest = self.text.modulation(conditioning_BD)
        normed_text = modulated_norm(text_BTD, shift=shift, scale=scale)

        queries = [self.image.queries(normed_image)]
        if not self.context_pre_only:  # else what the text attends to is unused
            queries.append(self.text.queries(normed_text))
        attended_image, *attended_text = attention.attend_streams(
            queries,
            [self.image.keys(normed_image), self.text.keys(normed_text)],
            [self.image.values(normed_image), self.text.values(normed_text)],
            mask_BS=mask_BS,
            implementation=self.attention,
            layout=self.layout,
        )

        if self.dual_attention:
            # Reads the block's input, like the joint attention; both are added to it.
            image_BID = image_BID + self._attend_alone(image_BID, Modulation(*dual))

        def finish(
            stream: Stream,
            tokens: jax.Array,
            attended: jax.Array,
            rest: list[jax.Array],
        ) -> jax.Array:
            """One stream after its attention and MLP."""
            gate, *mlp = rest
            return stream.finish(
                tokens,
                attended,
                attention_gate=gate,
                mlp=Modulation(*mlp),
                layout=self.layout,
            )

        image_BID = finish(self.image, image_BID, attended_image, image_rest)
        if not self.context_pre_only:
            text_BTD = finish(self.text, text_BTD, attended_text[0], text_rest)
        return image_BID, text_BTD

    def _attend_alone(self, image_BID: jax.Array, dual: Modulation) -> jax.Array:
        """Gated attention of the image tokens among themselves: [B, I, D]."""
        normed_image = modulated_norm(image_BID, shift=dual.shift, scale=dual.scale)
        attended_BINK = attention.joint_attention(
            self.image_only.queries(normed_image),
            self.image_only.keys(normed_image),
            self.image_only.values(normed_image),
            implementation=self.attention,
            layout=self.layout,
        )
        return dual.gate * self.image_only.out(attended_BINK.reshape(image_BID.shape))


class FinalLayer(nnx.Module):
    """Modulated norm and a zero-initialised linear layer to patches."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs):
        self.modulation = AdaLN(config.width, 2, rngs=rngs)
        self.linear = Linear(
            config.width, config.patch_dim, rngs=rngs, kernel_init=zeros
        )

    def __call__(self, image_BID: jax.Array, conditioning_BD: jax.Array) -> jax.Array:
        """Maps image tokens to patches [B, I, patch * patch * C]."""
        shift, scale = self.modulation(conditioning_BD)
        return self.linear(modulated_norm(image_BID, shift=shift, scale=scale))


class MMDiT(nnx.Module):
    """Noisy latents, timesteps and text to a velocity (figure 2a)."""

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs, layout: Layout):
        self.config = config
        self.layout = layout
        width = config.width
        small_normal = nnx.initializers.normal(0.02)  # the DiT recipe for t
        self.patch_embed = Linear(config.patch_dim, width, rngs=rngs)
        self.timestep_embed = VectorEmbedder(
            2 * embeddings.NUM_FREQUENCIES, width, rngs=rngs, kernel_init=small_normal
        )
        self.pooled_embed = VectorEmbedder(
            config.pooled_dim, width, rngs=rngs, kernel_init=xavier_uniform
        )
        self.context_embed = Linear(config.context_dim, width, rngs=rngs)

        def stack(num_blocks: int, **kind: bool) -> MMDiTBlock:
            """Equal blocks, their parameters stacked along a leading dim."""
            block_keys = jax.random.split(rngs.params(), num_blocks)
            return nnx.vmap(
                lambda key: MMDiTBlock(
                    config, rngs=nnx.Rngs(key), layout=layout, **kind
                )
            )(block_keys)

        if config.dual_attention_blocks:
            self.dual_blocks = stack(config.dual_attention_blocks, dual_attention=True)
        if config.num_plain_blocks:
            self.blocks = stack(config.num_plain_blocks)
        self.last_block = MMDiTBlock(
            config, rngs=rngs, layout=layout, context_pre_only=True
        )
        self.final = FinalLayer(config, rngs=rngs)

    def __call__(
        self, noisy_latents: jax.Array, timesteps: jax.Array, conditioning: Conditioning
    ) -> jax.Array:
        """A `VelocityFn`: [B, H, W, C], [B] and text to [B, H, W, C] float32."""
        image, text, vector, mask = self.embed(noisy_latents, timesteps, conditioning)
        image, text = self.apply_stacked(image, text, vector, mask)
        image, _ = remat(_apply_block, self.config.remat)(
            *nnx.split(self.last_block), image, text, vector, mask
        )
        patches = self.final(image, vector).astype(jnp.float32)
        _, height, width, _ = noisy_latents.shape
        return embeddings.unpatchify(
            patches, height=height, width=width, patch_size=self.config.patch_size
        )

    def embed(
        self, noisy_latents: jax.Array, timesteps: jax.Array, conditioning: Conditioning
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
        """What the blocks read: image [B, I, D], text, vector [B, D], mask [B, S]."""
        config = self.config
        dtype = COMPUTE_DTYPES[config.compute_dtype]
        _, height, width, _ = noisy_latents.shape
        config.check_latents(height, width)
        patches = embeddings.patchify(noisy_latents, patch_size=config.patch_size)
        positions = embeddings.position_table(
            height // config.patch_size,
            width // config.patch_size,
            width=config.width,
            grid_tokens=config.grid_tokens,
            max_grid_tokens=config.max_grid_tokens,
            scale=config.position_scale,
            file=config.position_file,
        )
        image = self.patch_embed(patches.astype(dtype)) + positions[None].astype(dtype)
        text = self.context_embed(conditioning.context.astype(dtype))
        image = self.layout(image, ("batch", "image_tokens", "embed_activation"))
        text = self.layout(text, ("batch", "text_tokens", "embed_activation"))
        vector = self.timestep_embed(
            embeddings.timestep_features(timesteps).astype(dtype)
        ) + self.pooled_embed(conditioning.pooled.astype(dtype))
        mask = _joint_mask(conditioning.context_mask, num_image=image.shape[1])
        return image, text, vector, mask

    def apply_stacked(
        self,
        image: jax.Array,
        text: jax.Array,
        vector: jax.Array,
        mask: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Both streams after all blocks but the last."""
        config = self.config
        if config.dual_attention_blocks:
            image, text = self._scan(self.dual_blocks, image, text, vector, mask)
        if config.num_plain_blocks:
            image, text = self._scan(self.blocks, image, text, vector, mask)
        return image, text

    def _scan(
        self,
        blocks: MMDiTBlock,
        image: jax.Array,
        text: jax.Array,
        vector: jax.Array,
        mask: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Runs stacked equal blocks as a loop with one compiled body."""
        graphdef, stacked_params = nnx.split(blocks)
        apply_block = remat(_apply_block, self.config.remat)

        def body(
            streams: tuple[jax.Array, jax.Array], params: nnx.State
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            """One block of the loop."""
            return apply_block(graphdef, params, *streams, vector, mask), None

        streams, _ = jax.lax.scan(
            body, (image, text), stacked_params, unroll=self.config.unroll
        )
        return streams


def _apply_block(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    image: jax.Array,
    text: jax.Array,
    vector: jax.Array,
    mask: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    image, text = cpu.keep_blocks_apart((image, text))
    return nnx.merge(graphdef, params)(image, text, vector, mask)


def _joint_mask(context_mask: jax.Array | None, *, num_image: int) -> jax.Array | None:
    """[B, T] to [B, I + T]: image tokens are always attended."""
    if context_mask is None:
        return None
    return jnp.pad(context_mask, ((0, 0), (num_image, 0)), constant_values=True)
