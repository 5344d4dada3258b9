# SPDX-License-Identifier: Apache-2.0
"""What enters the MMDiT: patches, timesteps, positions.

Dims: B batch, H W C latent height, width, channels, I image tokens, D width.
"""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer

from rfjax import checksums
from rfjax.errors import MissingFileError, UserError
from rfjax.models.layers import Linear

NUM_FREQUENCIES = 128  # of the timestep features, which are [cos, sin]: 256 wide
MAX_PERIOD = 10_000.0
# The network sees t in [0, 1000], the range that released SD3 weights expect.
TIMESTEP_SCALE = 1000.0


def patchify(latents: jax.Array, *, patch_size: int) -> jax.Array:
    """Cuts [B, H, W, C] into tokens [B, I, patch * patch * C], row by row.

    Inside a token the order is (row, column, channel).
    """
    batch, height, width, channels = latents.shape
    rows, columns = height // patch_size, width // patch_size
    patches = latents.reshape(batch, rows, patch_size, columns, patch_size, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(
    tokens: jax.Array, *, height: int, width: int, patch_size: int
) -> jax.Array:
    """Inverse of `patchify`: [B, I, patch * patch * C] to [B, height, width, C]."""
    batch = tokens.shape[0]
    rows, columns = height // patch_size, width // patch_size
    patches = tokens.reshape(batch, rows, columns, patch_size, patch_size, -1)
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, -1)


def timestep_features(timesteps: jax.Array) -> jax.Array:
    """Sinusoids of 1000 t: [cos, sin] of 128 frequencies exp(-ln(10^4) k / 128).

    Args:
      timesteps: [B] float32 in [0, 1].

    Returns:
      [B, 256] float32.
    """
    exponents = jnp.arange(NUM_FREQUENCIES, dtype=jnp.float32) / NUM_FREQUENCIES
    frequencies = jnp.exp(-math.log(MAX_PERIOD) * exponents)
    angles = TIMESTEP_SCALE * timesteps[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def position_features(positions: np.ndarray, *, width: int) -> np.ndarray:
    """1-D sinusoids [sin, cos] with frequencies 10000^(-k / (width / 2)).

    Args:
      positions: [L] any real positions.
      width: number of features, even.

    Returns:
      [L, width] float64.
    """
    frequencies = MAX_PERIOD ** (-np.arange(width // 2) / (width / 2))
    angles = positions[:, None] * frequencies[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def position_table(
    rows: int,
    columns: int,
    *,
    width: int,
    grid_tokens: int,
    max_grid_tokens: int,
    scale: float = 1.0,
    file: str | None = None,
) -> np.ndarray:
    """Fixed 2-D sin-cos positions of an image of `rows` x `columns` tokens.

    The full table has `max_grid_tokens` positions per side,
    (p - (max_grid_tokens - grid_tokens) / 2) * scale; an image uses its centre
    crop, so a square image with `grid_tokens` per side covers 0 .. grid_tokens - 1
    (times scale) and longer sides extrapolate to both ends. With scale = 256 / S a
    model trained at 256 px is continued at S px.

    Args:
      rows: tokens along the height, at most `max_grid_tokens`.
      columns: tokens along the width, at most `max_grid_tokens`.
      width: D, divisible by 4; the first half encodes the column, the second the row.
      grid_tokens: tokens per side of a square image of the target resolution.
      max_grid_tokens: tokens per side of the full table.
      scale: distance between neighbouring tokens.
      file: .npy file of another full table, [max_grid_tokens**2, D], to be cropped.

    Returns:
      [rows * columns, D] float32, computed in float64.

    Raises:
      MissingFileError: if there is no such file.
      UserError: if the image exceeds the full table, or the file does not hold one.

    Source: Esser et al. 2024, arXiv:2403.03206, section 5.3.2.
    """
    if max(rows, columns) > max_grid_tokens:
        raise UserError(
            "model.max_grid_tokens must be at least the token grid of the latents, "
            f"{rows} x {columns}, got {max_grid_tokens}; raise it to "
            f"{max(rows, columns)} or use smaller latents."
        )
    top, left = (max_grid_tokens - rows) // 2, (max_grid_tokens - columns) // 2
    if file is not None:
        full = _read_table(file, side=max_grid_tokens, width=width)
        crop = full[top : top + rows, left : left + columns]
        return np.array(crop).reshape(rows * columns, width)
    all_positions = np.arange(max_grid_tokens) - (max_grid_tokens - grid_tokens) / 2
    row_features = position_features(
        all_positions[top : top + rows] * scale, width=width // 2
    )
    column_features = position_features(
        all_positions[left : left + columns] * scale, width=width // 2
    )
    table = np.concatenate(
        [
            np.broadcast_to(column_features[None], (rows, columns, width // 2)),
            np.broadcast_to(row_features[:, None], (rows, columns, width // 2)),
        ],
        axis=-1,
    )
    return table.reshape(rows * columns, width).astype(np.float32)


def _read_table(file: str, *, side: int, width: int) -> np.ndarray:
    """Opens a full table as [side, side, D]; only what is used is read from disk."""
    if not Path(file).is_file():
        raise MissingFileError(
            f"model.position_file {file} does not exist; set it to the positions.npy "
            "in the run folder that the weights were imported into."
        )
    damage = checksums.damage_of(Path(file))
    if damage is not None:
        raise UserError(
            f"model.position_file {file} is damaged ({damage}); copy it again from a "
            "backup, or import the weights again."
        )
    table = np.load(file, mmap_mode="r", allow_pickle=False)
    if table.shape != (side**2, width) or table.dtype != np.float32:
        raise UserError(
            f"model.position_file {file} must hold float32 {(side**2, width)}, got "
            f"{table.dtype} {table.shape}; take the file that was imported with the "
            "weights."
        )
    return table.reshape(side, side, width)


class VectorEmbedder(nnx.Module):
    """Linear, SiLU, Linear: a vector (timestep features or pooled text) to width D."""

    def __init__(
        self, num_in: int, width: int, *, rngs: nnx.Rngs, kernel_init: Initializer
    ):
        self.hidden = Linear(num_in, width, rngs=rngs, kernel_init=kernel_init)
        self.out = Linear(width, width, rngs=rngs, kernel_init=kernel_init)

    def __call__(self, vectors: jax.Array) -> jax.Array:
        """Maps [B, num_in] to [B, D]."""
        return self.out(jax.nn.silu(self.hidden(vectors)))
