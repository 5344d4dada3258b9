# SPDX-License-Identifier: Apache-2.0
"""Aspect buckets: the few sizes that pictures of all shapes are brought to.

A network is compiled for one size at a time, so pictures share a small table of sizes,
and every batch is of one of them. A table has one size for each short side:

    short, long = k * multiple, floor(S * S / short / multiple) * multiple

and its transpose, up to the largest aspect ratio. No size has more pixels than the
square, so none needs more memory. At S = 1024 and multiple 64 the table consists of
sizes that SDXL was trained on (arXiv:2307.01952, appendix I).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from PIL import Image

from rfjax.errors import UserError
from rfjax.value_types import Bounds, Size, check_fields

MaxAspect = Annotated[float, Bounds(1, 16, remedy="choose for example 2")]
Aspect = Annotated[float, Bounds(1 / 16, 16, remedy="choose for example 1.5")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """Which sizes pictures are brought to; by default a square for all of them.

    Attributes:
      max_aspect: long side over short side, at most; 1: squares alone.
      multiple: what divides every side in pixels: the pixels of a latent position times
        the model's patch size, 8 * 2 for SD3.
    """

    max_aspect: MaxAspect = 1.0
    multiple: Size = 16

    def __post_init__(self):
        check_fields(self, section="buckets")

    def sizes(self, image_size: int) -> tuple[tuple[int, int], ...]:
        """The buckets of an image size; see `bucket_sizes`."""
        if self.max_aspect == 1.0:
            return ((image_size, image_size),)
        return bucket_sizes(
            image_size, multiple=self.multiple, max_aspect=self.max_aspect
        )


def bucket_sizes(
    image_size: int, *, multiple: int, max_aspect: float
) -> tuple[tuple[int, int], ...]:
    """The table of sizes.

    Args:
      image_size: S, the side of the square in pixels.
      multiple: what divides every side.
      max_aspect: long side over short side, at most.

    Returns:
      Sizes (H, W) in pixels, each once, from the widest to the tallest.

    Raises:
      UserError: `multiple` does not divide `image_size`.

    Example:
      >>> bucket_sizes(64, multiple=8, max_aspect=2)
      ((48, 80), (56, 72), (64, 64), (72, 56), (80, 48))
    """
    if image_size % multiple:
        raise UserError(
            f"buckets.multiple must divide source.image_size {image_size}, got "
            f"{multiple}; choose an image size of "
            f"{max(image_size // multiple, 1) * multiple} pixels, or another multiple."
        )
    sizes = set()
    for short in range(multiple, image_size + 1, multiple):
        long = image_size**2 // short // multiple * multiple
        if long <= max_aspect * short:
            sizes |= {(short, long), (long, short)}
    return tuple(sorted(sizes))


def nearest_bucket(
    height: int, width: int, sizes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """The size whose aspect ratio is nearest, as the logarithm of the ratio has it.

    The comparison uses whole numbers alone, so that it is the same everywhere.

    Args:
      height: of the picture in pixels.
      width: of the picture in pixels.
      sizes: (H, W) of each bucket; of two that are as near, the first is taken.
    """

    def distance(size: tuple[int, int]) -> float:
        """How many times too tall or too wide the picture is; at least 1."""
        tall, wide = height * size[1], width * size[0]
        return max(tall, wide) / min(tall, wide)

    return min(sizes, key=distance)


@dataclasses.dataclass(frozen=True)
class CropBox:
    """The part of a picture that was kept, in its pixels; sides may be fractions."""

    top: float
    left: float
    height: float
    width: float

    def __iter__(self) -> Iterator[float]:
        return iter(dataclasses.astuple(self))


def fit(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, CropBox]:
    """Resizes a picture until it covers a size, and crops what protrudes.

    The centre is kept. The filter is Lanczos', widened where a picture shrinks, so
    that nothing aliases; both steps are one, so no pixel is rounded twice.

    Args:
      image: [H, W, 3] uint8.
      size: (height, width) of the result.

    Returns:
      The picture in that size, [height, width, 3] uint8, and the part that was kept.
    """
    (height, width), (rows, columns) = image.shape[:2], size
    # What is kept has the aspect ratio of the size, and one side of the picture.
    kept_height = min(float(height), width * rows / columns)
    kept_width = min(float(width), height * columns / rows)
    crop = CropBox(
        top=(height - kept_height) / 2,
        left=(width - kept_width) / 2,
        height=kept_height,
        width=kept_width,
    )
    if (height, width) == (rows, columns):
        return image, crop
    resized = Image.fromarray(image).resize(
        (columns, rows),
        Image.Resampling.LANCZOS,
        box=(crop.left, crop.top, crop.left + kept_width, crop.top + kept_height),
    )
    return np.asarray(resized), crop
