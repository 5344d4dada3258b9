# SPDX-License-Identifier: Apache-2.0
"""Shape and numerics of an MMDiT: d blocks, width 64 d, d heads of 64, MLP 256 d."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from rfjax import schema
from rfjax.errors import UserError
from rfjax.models.attention import IMPLEMENTATIONS
from rfjax.models.base import HEAD_DIM, check_sizes
from rfjax.models.numerics import COMPUTE_DTYPES, REMAT_POLICIES
from rfjax.value_types import (
    Bounds,
    InputPath,
    NaturalInt,
    OneOf,
    PositiveFloat,
    PositiveInt,
    Size,
    check_fields,
)

_WIDTH = "the width is 64 times the depth, and 38 are 8 billion parameters"
GridSize = Annotated[int, Bounds(1, 4096)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """Shape and numerics of an MMDiT.

    Attributes:
      depth: number of blocks; also the number of heads, and 1/64 of the width.
      patch_size: latent pixels per side of one image token.
      latent_channels: channels of the latents.
      context_dim: features of a text token.
      pooled_dim: features of the pooled text vector.
      qk_norm: RMSNorm on queries and keys, per head and stream (SD3 section 5.3.2).
      dual_attention_blocks: first blocks with a second, image-only attention (SD3.5
        medium: 13); fewer than `depth`.
      grid_tokens: tokens per side of a square image of the target resolution.
      max_grid_tokens: tokens per side of the full position table.
      position_scale: distance of neighbouring positions; 256 / S at S px.
      position_file: .npy file of another full table, [max_grid_tokens**2, width], that
        came with imported weights; None for the computed one.
      compute_dtype: of activations and matrix products.
      remat: a name in `numerics.REMAT_POLICIES`.
      attention: a name in `attention.IMPLEMENTATIONS`.
      unroll: blocks in one turn of the loop over blocks. 1 compiles in the same time at
        any depth; unrolling all saves a tenth of the step on a CPU but compiles slowly.
    """

    depth: Annotated[int, Bounds(1), Bounds(high=1024, remedy=_WIDTH)]
    patch_size: Annotated[int, Bounds(1, 64)] = 2
    latent_channels: Size = 16
    context_dim: Size = 4096
    pooled_dim: Size = 2048
    qk_norm: bool = False
    dual_attention_blocks: NaturalInt = 0
    grid_tokens: GridSize = 16
    max_grid_tokens: GridSize = 192
    position_scale: PositiveFloat = 1.0
    position_file: InputPath | None = None
    compute_dtype: Annotated[str, OneOf(COMPUTE_DTYPES)] = "bfloat16"
    remat: Annotated[str, OneOf(REMAT_POLICIES)] = schema.changeable("none")
    attention: Annotated[str, OneOf(IMPLEMENTATIONS)] = schema.changeable("xla")
    unroll: PositiveInt = schema.changeable(1)

    def __post_init__(self):
        check_fields(self, section="model")
        if self.dual_attention_blocks >= self.depth:
            raise UserError(
                "model.dual_attention_blocks must be less than "
                f"model.depth = {self.depth}, got {self.dual_attention_blocks}; 0 "
                "switches the second attention off."
            )

    @property
    def width(self) -> int:
        """D = 64 depth."""
        return HEAD_DIM * self.depth

    @property
    def num_heads(self) -> int:
        """Heads of 64."""
        return self.depth

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

    def check_data(
        self,
        *,
        name: str,
        latent_shape: tuple[int, int, int],
        context_dim: int,
        pooled_dim: int,
    ) -> None:
        """Raises UserError, naming the field, if data of these sizes do not fit."""
        height, width, channels = latent_shape
        self.check_latents(height, width)
        needed = {
            "latent_channels": channels,
            "context_dim": context_dim,
            "pooled_dim": pooled_dim,
        }
        check_sizes(self, needed, name=name)
        tokens = max(height, width) // self.patch_size
        if self.max_grid_tokens < tokens:
            raise UserError(
                f"model.max_grid_tokens must be at least {tokens} for latents of "
                f"{height} x {width}, got {self.max_grid_tokens}."
            )

    def num_image_tokens(self, latent_shape: tuple[int, int, int]) -> int:
        """Tokens of one image with latents (H, W, C)."""
        height, width, _ = latent_shape
        return (height // self.patch_size) * (width // self.patch_size)
