# SPDX-License-Identifier: Apache-2.0
"""What a picture looks like, as a short vector of whole numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.fft
from PIL import Image

# Products of two descriptors stay below 2^24: float32 holds them and all partial sums
# exactly, so the order in which a machine sums them does not change a result.
LENGTH = 4000


def normalise(vector: Sequence[float] | np.ndarray) -> np.ndarray:
    """Brings a vector to the length `LENGTH`, in whole numbers.

    Args:
      vector: [D], finite, not all zeros.

    Returns:
      [D] int16.
    """
    vector = np.asarray(vector, np.float64)
    vector = vector / np.abs(vector).max()  # whatever its size, its squares are finite
    return np.rint(vector * (LENGTH / np.linalg.norm(vector))).astype(np.int16)


_SIDE = 32  # pixels of the small picture
_LUMA, _CHROMA = 12, 6  # lowest frequencies of each direction


def describe(image: np.ndarray) -> np.ndarray:
    """V1."""
    small = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    r, g, b = np.moveaxis(np.asarray(small, np.float64) / 255, -1, 0)
    parts = []
    for plane, n, w in (
        ((r + g + b) / 3, _LUMA, 1.0),
        (r - b, _CHROMA, 1.0),
        (g - (r + b) / 2, _CHROMA, 1.0),
    ):
        c = scipy.fft.dctn(plane, norm="ortho")[:n, :n] * w
        if n == _LUMA:
            c[0, 0] = 0.5
        parts.append(c.ravel())
    return normalise(np.concatenate(parts))
