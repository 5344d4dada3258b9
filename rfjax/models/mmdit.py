# SPDX-License-Identifier: Apache-2.0
"""The multimodal diffusion transformer (MMDiT) of Stable Diffusion 3.

Image and text tokens keep two streams of weights and meet in one joint
attention a block. A model is named by its depth d: d blocks, width 64 d, d heads
of 64, MLP 256 d. Source: Esser et al. 2024, arXiv:2403.03206, section 4, figure 2.

Dims: B batch, H W C latents, I image tokens, T text tokens, S = I + T, D width,
N heads, K head dim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from rfjax.models import attention, embeddings
from rfjax.models.embeddings import VectorEmbedder
from rfjax.models.layers import (
    AdaLN,
    Linear,
    Modulation,
    RMSNorm,
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
      grid_tokens: tokens a side of a square image of the target resolution.
      max_grid_tokens: tokens a side of the full position table.
      position_scale: distance of neighbouring positions; 256 / S at S px.
      compute_dtype: of activations and matrix products.
      remat: a name in `REMAT_POLICIES`.
      attention: a name in `attention.IMPLEMENTATIONS`.
    """

    depth: int
    patch_size: int = 2
    latent_channels: int = 16
    context_dim: int = 4096
    pooled_dim: int = 2048
    qk_norm: bool = False
    grid_tokens: int = 16
    max_grid_tokens: int = 192
    position_scale: float = 1.0
    compute_dtype: str = "bfloat16"
    remat: str = "none"
    attention: str = "xla"

    def __post_init__(self):
        for field in ("depth", "patch_size", "latent_channels", "context_dim",
                      "pooled_dim", "grid_tokens", "max_grid_tokens"):  # fmt: skip
            if getattr(self, field) < 1:
                raise ValueError(
                    f"model.{field} must be at least 1, got {getattr(self, field)}; "
                    "give a positive whole number."
                )
        if not self.position_scale > 0:
            raise ValueError(
                f"model.position_scale must be positive, got {self.position_scale}; "
                "use 1.0, or 256 / S to continue a 256 px model at S px."
            )
        for field, table in (
            ("compute_dtype", COMPUTE_DTYPES),
            ("remat", REMAT_POLICIES),
            ("attention", attention.IMPLEMENTATIONS),
        ):
            if getattr(self, field) not in table:
                raise ValueError(
                    f"model.{field} must be one of {', '.join(table)}, "
                    f"got {getattr(self, field)!r}."
                )

    @property
    def width(self) -> int:
        """D = 64 depth."""
        return HEAD_DIM * self.depth

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch."""
        return self.patch_size**2 * self.latent_channels

    def check_latents(self, height: int, width: int) -> None:
        """Raises ValueError if latents of this size cannot be cut into patches."""
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"model.patch_size must divide the latents, got {self.patch_size} for "
                f"latents of {height} x {width}; choose a divisor of both sides."
            )


class Stream(nnx.Module):
    """The weights of one stream (image or text) in one block.

    With `pre_only` the stream gives queries, keys and values and ends there: the
    text stream of the last block, whose output nobody reads.
    """

    def __init__(self, config: MMDiTConfig, *, pre_only: bool, rngs: nnx.Rngs):
        width = config.width
        self.num_heads = config.depth
        self.qk_norm = config.qk_norm
        self.modulation = AdaLN(width, 2 if pre_only else 6, rngs=rngs)
        self.query = Linear(width, width, rngs=rngs)
        self.key = Linear(width, width, rngs=rngs)
        self.value = Linear(width, width, rngs=rngs)
        if config.qk_norm:
            self.query_norm = RMSNorm(HEAD_DIM)
            self.key_norm = RMSNorm(HEAD_DIM)
        if not pre_only:
            self.out = Linear(width, width, rngs=rngs)
            self.mlp_in = Linear(width, 4 * width, rngs=rngs)
            self.mlp_out = Linear(4 * width, width, rngs=rngs)

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
        hidden = jax.nn.gelu(self.mlp_in(normed), approximate=True)
        hidden = constrain(hidden, ("batch", "tokens", "mlp"))
        tokens_BSD = tokens_BSD + mlp.gate * self.mlp_out(hidden)
        return constrain(tokens_BSD, ("batch", "tokens", "embed_activation"))


class MMDiTBlock(nnx.Module):
    """Joint attention between the streams, then one MLP each (figure 2b)."""

    def __init__(
        self,
        config: MMDiTConfig,
        *,
        rngs: nnx.Rngs,
        constrain: Constrain,
        context_pre_only: bool = False,
    ):
        self.attention = config.attention
        self.constrain = constrain
        self.context_pre_only = context_pre_only
        self.image = Stream(config, pre_only=False, rngs=rngs)
        self.text = Stream(config, pre_only=context_pre_only, rngs=rngs)

    def __call__(
        self,
        image_BID: jax.Array,
        text_BTD: jax.Array,
        conditioning_BD: jax.Array,
        mask_BS: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the two streams after the block; a pre-only text stream ends."""
        num_image = image_BID.shape[1]
        shift, scale, *image_rest = self.image.modulation(conditioning_BD)
        normed_image = modulated_norm(image_BID, shift=shift, scale=scale)
        shift, scale, *text_rest = self.text.modulation(conditioning_BD)
        normed_text = modulated_norm(text_BTD, shift=shift, scale=scale)

        # Nobody reads what the text of the last block attends to.
        query_BQNK = self.image.queries(normed_image)
        if not self.context_pre_only:
            query_BQNK = jnp.concatenate(
                [query_BQNK, self.text.queries(normed_text)], axis=1
            )
        attended_BQNK = attention.joint_attention(
            query_BQNK,
            jnp.concatenate(
                [self.image.keys(normed_image), self.text.keys(normed_text)], axis=1
            ),
            jnp.concatenate(
                [self.image.values(normed_image), self.text.values(normed_text)], axis=1
            ),
            mask_BS=mask_BS,
            implementation=self.attention,
        )

        def finish(stream, tokens, attended, rest):
            gate, *mlp = rest
            return stream.finish(
                tokens,
                attended,
                attention_gate=gate,
                mlp=Modulation(*mlp),
                constrain=self.constrain,
            )

        image_BID = finish(
            self.image, image_BID, attended_BQNK[:, :num_image], image_rest
        )
        if not self.context_pre_only:
            text_BTD = finish(
                self.text, text_BTD, attended_BQNK[:, num_image:], text_rest
            )
        return image_BID, text_BTD


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
        if config.depth > 1:
            block_keys = jax.random.split(rngs.params(), config.depth - 1)
            self.blocks = nnx.vmap(
                lambda key: MMDiTBlock(config, rngs=nnx.Rngs(key), constrain=constrain)
            )(block_keys)
        self.last_block = MMDiTBlock(
            config, rngs=rngs, constrain=constrain, context_pre_only=True
        )
        self.final = FinalLayer(config, rngs=rngs)

    def __call__(
        self, noisy_latents: jax.Array, timesteps: jax.Array, conditioning: Conditioning
    ) -> jax.Array:
        """A `VelocityFn`: [B, H, W, C], [B] and text to [B, H, W, C] float32."""
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
        )
        image = self.patch_embed(patches.astype(dtype)) + positions[None].astype(dtype)
        text = self.context_embed(conditioning.context.astype(dtype))
        image = self.constrain(image, ("batch", "tokens", "embed_activation"))
        text = self.constrain(text, ("batch", "tokens", "embed_activation"))
        vector = self.timestep_embed(
            embeddings.timestep_features(timesteps).astype(dtype)
        ) + self.pooled_embed(conditioning.pooled.astype(dtype))
        mask = _joint_mask(conditioning.context_mask, num_image=image.shape[1])

        if config.depth > 1:
            image, text = self._scan_blocks(image, text, vector, mask)
        image, _ = _remat(_apply_block, config.remat)(
            *nnx.split(self.last_block), image, text, vector, mask
        )
        patches = self.final(image, vector).astype(jnp.float32)
        return embeddings.unpatchify(
            patches, height=height, width=width, patch_size=config.patch_size
        )

    def _scan_blocks(self, image, text, vector, mask):
        """Runs the stacked equal blocks as one compiled loop body."""
        graphdef, stacked_params = nnx.split(self.blocks)
        apply_block = _remat(_apply_block, self.config.remat)

        def body(streams, params):
            return apply_block(graphdef, params, *streams, vector, mask), None

        streams, _ = jax.lax.scan(body, (image, text), stacked_params)
        return streams


def _apply_block(graphdef, params, image, text, vector, mask):
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
