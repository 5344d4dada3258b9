# SPDX-License-Identifier: Apache-2.0
"""What a picture looks like, as a short vector of whole numbers.

Gradients by direction, as in HOG (Dalal & Triggs, 2005), and mean colours, both in
soft cells of an eighth of the side: a slight crop moves little from cell to cell, and
another drawing in a cell fills it otherwise. No weights are needed, and no network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

# Products of two descriptors stay below 2^24: float32 holds them and all partial sums
# exactly, so the order in which a machine sums them does not change a result.
LENGTH = 4000

THUMBNAIL = 64  # pixels of a side
_CELLS = 8
_DIRECTIONS = 8
_NOISE = 0.02  # gradients below it count for little
_BRIGHTNESS = 0.05  # so that pictures of one colour have a descriptor as well


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Brings a picture [H, W, 3] uint8 to [64, 64, 3] uint8, whatever its shape."""
    size = (THUMBNAIL, THUMBNAIL)
    small = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(small)


def describe(small: np.ndarray) -> np.ndarray:
    """The descriptor of a picture.

    Args:
      small: its `thumbnail`.

    Returns:
      [705] int16, of the length `LENGTH`: 8 x 8 cells of 8 directions and 3 colours,
      and a constant.
    """
    planes = np.moveaxis(small.astype(np.float64) / 255, -1, 0)
    return normalise(
        np.concatenate([_unit(_gradients(planes)), _unit(_colours(planes))])
    )


def normalise(vector: Sequence[float] | np.ndarray) -> np.ndarray:
    """Brings a vector to the length `LENGTH`, in whole numbers.

    Args:
      vector: [D], finite, not all zeros.

    Returns:
      [D] int16.
    """
    vector = np.asarray(vector, np.float64)
    vector = vector / np.abs(vector).max()  # whatever its size, its squares are finite
    return np.rint(_unit(vector) * LENGTH).astype(np.int16)


def _gradients(planes: np.ndarray) -> np.ndarray:
    """Root of the gradient in each direction and cell; of the plane that has most."""
    padded = np.pad(planes, ((0, 0), (1, 1), (1, 1)), mode="edge")
    right = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    strongest = np.argmax(right**2 + down**2, axis=0)[None]
    right = np.take_along_axis(right, strongest, axis=0)[0]
    down = np.take_along_axis(down, strongest, axis=0)[0]
    turn = np.arctan2(down, right) / (2 * np.pi) % 1 * _DIRECTIONS
    # Between two directions a gradient belongs to both.
    apart = np.abs(turn - np.arange(_DIRECTIONS)[:, None, None])
    share = np.maximum(0, 1 - np.minimum(apart, _DIRECTIONS - apart))
    cells = _pool(share * np.hypot(right, down))
    return np.sqrt(cells + _NOISE**2) - _NOISE


def _colours(planes: np.ndarray) -> np.ndarray:
    """Mean brightness, red against blue, and green against both, of each cell."""
    red, green, blue = _pool(planes)
    brightness = (red + green + blue) / 3
    opposed = [red - blue, green - (red + blue) / 2]
    cells = np.stack([brightness - brightness.mean(), *opposed])
    return np.append(cells, _BRIGHTNESS)


def _pool(planes: np.ndarray) -> np.ndarray:
    """Means over cells that overlap by half; [P, 64, 64] to [P, 8, 8]."""
    width = THUMBNAIL / _CELLS
    centres = (np.arange(_CELLS) + 0.5) * width
    pixels = np.arange(THUMBNAIL) + 0.5
    weights = np.maximum(0, 1 - np.abs(pixels - centres[:, None]) / width) / width
    return weights @ planes @ weights.T


def _unit(vector: np.ndarray) -> np.ndarray:
    """A vector of the length 1, flat; zeros stay zeros."""
    vector = vector.ravel()
    return vector / max(np.linalg.norm(vector), 1e-12)
