# SPDX-License-Identifier: Apache-2.0
"""The multimodal diffusion transformer (MMDiT) of Stable Diffusion 3.

Image and text tokens keep two streams of weights and meet in one joint
attention a block. A model is named by its depth d: d blocks, width 64 d, d heads
of 64, MLP 256 d. Source: Esser et al. 2024, arXiv:2403.03206, section 4, figure 2.
In SD3.5 medium the first blocks have a second attention among image tokens alone.

Dims: B batch, H W C latents, I image tokens, T text tokens, S = I + T, D width,
N heads, K head dim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from rfjax.errors import UserError
from rfjax.models import attention, embeddings
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
from rfjax.types import Conditioning, VelocityFn

HEAD_DIM = 64  # of every SD3 model: depth names heads and width alike
COMPUTE_DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}

# What the backward pass of a block may keep, by name.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Every linear layer's output with its bias, and what was attended to: the backward
    # pass recomputes only what is elementwise.
    "linear": jax.checkpoint_policies.save_only_these_names("linear", "attention"),
    "full": jax.checkpoint_policies.nothing_saveable,
}

# Gives an array (by the logical names of its dims) a place on the mesh.
Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """Shape and numerics of an MMDiT.

    Attributes:
      depth: number of blocks; also the number of heads, and 1/64 of the width.
      patch_size: latent pixels a side of one image token.
      latent_channels: C.
      context_dim: features of a text token.
      pooled_dim: features of the pooled text vector.
      qk_norm: RMSNorm on queries and keys, per head and stream (SD3 section 5.3.2).
      dual_attention_blocks: first blocks with a second, image-only attention (SD3.5
        medium: 13); fewer than `depth`.
      grid_tokens: tokens a side of a square image of the target resolution.
      max_grid_tokens: tokens a side of the full position table.
      position_scale: distance of neighbouring positions; 256 / S at S px.
      position_file: .npy file of another full table, [max_grid_tokens**2, width], that
        came with imported weights; None for the computed one.
      compute_dtype: of activations and matrix products.
      remat: a name in `REMAT_POLICIES`.
      attention: a name in `attention.IMPLEMENTATIONS`.
      unroll: blocks in one turn of the loop over blocks. 1 compiles in the same time at
        any depth; all of them saves a CPU a tenth of the step, and compiles slowly.
    """

    depth: int
    patch_size: int = 2
    latent_channels: int = 16
    context_dim: int = 4096
    pooled_dim: int = 2048
    qk_norm: bool = False
    dual_attention_blocks: int = 0
    grid_tokens: int = 16
    max_grid_tokens: int = 192
    position_scale: float = 1.0
    position_file: str | None = None
    compute_dtype: str = "bfloat16"
    remat: str = "none"
    attention: str = "xla"
    unroll: int = 1

    def __post_init__(self):
        for field in ("depth", "patch_size", "latent_channels", "context_dim",
                      "pooled_dim", "grid_tokens", "max_grid_tokens",
                      "unroll"):  # fmt: skip
            if getattr(self, field) < 1:
                raise UserError(
                    f"model.{field} must be at least 1, got {getattr(self, field)}; "
                    "give a positive whole number."
                )
        if not 0 <= self.dual_attention_blocks < self.depth:
            raise UserError(
                "model.dual_attention_blocks must be at least 0 and less than "
                f"model.depth = {self.depth}, got {self.dual_attention_blocks}; 0 "
                "switches the second attention off."
            )
        if not self.position_scale > 0:
            raise UserError(
                f"model.position_scale must be positive, got {self.position_scale}; "
                "use 1.0, or 256 / S to continue a 256 px model at S px."
            )
        for field, table in (
            ("compute_dtype", COMPUTE_DTYPES),
            ("remat", REMAT_POLICIES),
            ("attention", attention.IMPLEMENTATIONS),
        ):
            if getattr(self, field) not in table:
                raise UserError(
                    f"model.{field} must be one of {', '.join(table)}, "
                    f"got {getattr(self, field)!r}."
                )

    @property
    def width(self) -> int:
        """D = 64 depth."""
        return HEAD_DIM * self.depth

    @property
    def num_plain_blocks(self) -> int:
        """Blocks with one attention, the last block left out."""
        return self.depth - 1 - self.dual_attention_blocks

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch."""
        return self.patch_size**2 * self.latent_channels

    def check_latents(self, height: int, width: int) -> None:
        """Raises UserError if latents of this size cannot be cut into patches."""
        if height % self.patch_size or width % self.patch_size:
            raise UserError(
                f"model.patch_size must divide the latents, got {self.patch_size} for "
                f"latents of {height} x {width}; choose a divisor of both sides."
            )


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
    text stream of the last block, whose output nobody reads.
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
        constrain: Constrain,
    ) -> jax.Array:
        """Adds the gated attention, then the gated MLP, to the stream."""
        attended = self.out(attended_BSNK.reshape(tokens_BSD.shape))
        tokens_BSD = tokens_BSD + attention_gate * attended
        normed = modulated_norm(tokens_BSD, shift=mlp.shift, scale=mlp.scale)
        hidden = gelu(self.mlp_in(normed))
        hidden = constrain(hidden, ("batch", self.tokens_name, "mlp"))
        tokens_BSD = tokens_BSD + mlp.gate * self.mlp_out(hidden)
        return constrain(tokens_BSD, ("batch", self.tokens_name, "embed_activation"))


class MMDiTBlock(nnx.Module):
    """Joint attention between the streams, then one MLP each (figure 2b).

    With `dual_attention` the image tokens also attend to themselves alone, under a
    modulation of their own.
    """

    def __init__(
        self,
        config: MMDiTConfig,
        *,
        rngs: nnx.Rngs,
        constrain: Constrain,
        context_pre_only: bool = False,
        dual_attention: bool = False,
    ):
        self.attention = config.attention
        self.constrain = constrain
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
        if not self.context_pre_only:  # else nobody reads what the text attends to
            queries.append(self.text.queries(normed_text))
        attended_image, *attended_text = attention.attend_streams(
            queries,
            [self.image.keys(normed_image), self.text.keys(normed_text)],
            [self.image.values(normed_image), self.text.values(normed_text)],
            mask_BS=mask_BS,
            implementation=self.attention,
            constrain=self.constrain,
        )

        if self.dual_attention:
            # Reads the block's input, like the joint attention; both are added to it.
            image_BID = image_BID + self._attend_alone(image_BID, Modulation(*dual))

        def finish(stream, tokens, attended, rest):
            gate, *mlp = rest
            return stream.finish(
                tokens,
                attended,
                attention_gate=gate,
                mlp=Modulation(*mlp),
                constrain=self.constrain,
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
            constrain=self.constrain,
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

    def __init__(self, config: MMDiTConfig, *, rngs: nnx.Rngs, constrain: Constrain):
        self.config = config
        self.constrain = constrain
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
            block_keys = jax.random.split(rngs.params(), num_blocks)
            return nnx.vmap(
                lambda key: MMDiTBlock(
                    config, rngs=nnx.Rngs(key), constrain=constrain, **kind
                )
            )(block_keys)

        if config.dual_attention_blocks:
            self.dual_blocks = stack(config.dual_attention_blocks, dual_attention=True)
        if config.num_plain_blocks:
            self.blocks = stack(config.num_plain_blocks)
        self.last_block = MMDiTBlock(
            config, rngs=rngs, constrain=constrain, context_pre_only=True
        )
        self.final = FinalLayer(config, rngs=rngs)

    def __call__(
        self, noisy_latents: jax.Array, timesteps: jax.Array, conditioning: Conditioning
    ) -> jax.Array:
        """A `VelocityFn`: [B, H, W, C], [B] and text to [B, H, W, C] float32."""
        image, text, vector, mask = self.embed(noisy_latents, timesteps, conditioning)
        image, text = self.apply_stacked(image, text, vector, mask)
        image, _ = _remat(_apply_block, self.config.remat)(
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
        image = self.constrain(image, ("batch", "image_tokens", "embed_activation"))
        text = self.constrain(text, ("batch", "text_tokens", "embed_activation"))
        vector = self.timestep_embed(
            embeddings.timestep_features(timesteps).astype(dtype)
        ) + self.pooled_embed(conditioning.pooled.astype(dtype))
        mask = _joint_mask(conditioning.context_mask, num_image=image.shape[1])
        return image, text, vector, mask

    def apply_stacked(self, image, text, vector, mask) -> tuple[jax.Array, jax.Array]:
        """Both streams after all blocks but the last."""
        config = self.config
        if config.dual_attention_blocks:
            image, text = self._scan(self.dual_blocks, image, text, vector, mask)
        if config.num_plain_blocks:
            image, text = self._scan(self.blocks, image, text, vector, mask)
        return image, text

    def _scan(self, blocks, image, text, vector, mask):
        """Runs stacked equal blocks as a loop with one compiled body."""
        graphdef, stacked_params = nnx.split(blocks)
        apply_block = _remat(_apply_block, self.config.remat)

        def body(streams, params):
            return apply_block(graphdef, params, *streams, vector, mask), None

        streams, _ = jax.lax.scan(
            body, (image, text), stacked_params, unroll=self.config.unroll
        )
        return streams


def _apply_block(graphdef, params, image, text, vector, mask):
    # No instruction reaches over two blocks: a CPU would rather add up the streams of
    # all blocks again, in every block, than write them down (12 to 15 % of the step).
    # On a TPU the loop is a barrier anyway.
    image, text = jax.lax.optimization_barrier((image, text))
    return nnx.merge(graphdef, params)(image, text, vector, mask)


def _remat(function, policy_name: str):
    """Recomputes in the backward pass whatever the named policy does not keep."""
    policy = REMAT_POLICIES[policy_name]
    if policy is None:
        return function
    return jax.checkpoint(function, policy=policy, static_argnums=0)


def _joint_mask(context_mask: jax.Array | None, *, num_image: int):
    """[B, T] to [B, I + T]: image tokens are always attended."""
    if context_mask is None:
        return None
    return jnp.pad(context_mask, ((0, 0), (num_image, 0)), constant_values=True)


@dataclasses.dataclass(frozen=True)
class Network:
    """An MMDiT as pure functions over a plain parameter tree.

    Built once: the module API is left behind here, so steps, checkpoints and
    export see nested dicts of float32 arrays with stable names.
    """

    config: MMDiTConfig
    constrain: Constrain = lambda array, names: array

    def __post_init__(self):
        # The graph definition is taken from shapes alone: no array is made.
        graphdef, _ = nnx.split(nnx.eval_shape(lambda: self._module(jax.random.key(0))))
        object.__setattr__(self, "_graphdef", graphdef)

    def _module(self, key: jax.Array) -> MMDiT:
        return MMDiT(self.config, rngs=nnx.Rngs(key), constrain=self.constrain)

    def init(self, key: jax.Array) -> dict:
        """Draws parameters (DiT recipe): Xavier-uniform linears, zero modulation."""
        return nnx.to_pure_dict(nnx.state(self._module(key)))

    def abstract_params(self) -> dict:
        """The parameter tree as shapes and dtypes."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def bind(self, params: Mapping) -> VelocityFn:
        """The velocity function of one set of parameters."""
        return nnx.merge(self._graphdef, params)
