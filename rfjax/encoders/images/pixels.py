# SPDX-License-Identifier: Apache-2.0
"""Pixels in [-1, 1], as networks take them, and in bytes, as picture files do."""

from __future__ import annotations

import numpy as np

from rfjax.errors import UserError


def from_bytes(images: np.ndarray) -> np.ndarray:
    """Pictures as float32 in [-1, 1].

    Args:
      images: [B, H, W, 3] uint8, or float in [-1, 1] already.

    Raises:
      UserError: not pictures of that kind.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"images must be [B, H, W, 3], got shape {images.shape}.")
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 127.5 - 1.0
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(
            f"images must be uint8, or float in [-1, 1], got {images.dtype}."
        )
    return images.astype(np.float32)


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Float pixels of any shape as uint8; what lies outside of [-1, 1] is clipped."""
    return np.clip(np.rint((pixels + 1.0) * 127.5), 0, 255).astype(np.uint8)
