# SPDX-License-Identifier: Apache-2.0
"""What the rest of rfjax asks of the config of a backbone."""

from __future__ import annotations

from typing import Protocol


class BackboneConfig(Protocol):
    """A frozen dataclass of a backbone's fields.

    Fields that decide speed and memory alone are declared with `schema.changeable`.

    Attributes:
      depth: number of blocks, which names the model.
      width: features of a token, 64 times the depth.
      num_heads: what the mesh axis `tensor` must divide.
      compute_dtype: of activations and matrix products, a key of
        `numerics.COMPUTE_DTYPES`.
      remat: what the backward pass keeps, a key of `numerics.REMAT_POLICIES`.
    """

    depth: int
    width: int
    num_heads: int
    compute_dtype: str
    remat: str

    def check_data(
        self,
        *,
        name: str,
        latent_shape: tuple[int, int, int],
        context_dim: int,
        pooled_dim: int,
    ) -> None:
        """Raises UserError, naming the field, if the model cannot read such data."""

    def num_image_tokens(self, latent_shape: tuple[int, int, int]) -> int:
        """Tokens of one image with latents (H, W, C)."""
