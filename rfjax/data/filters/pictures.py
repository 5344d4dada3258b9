# SPDX-License-Identifier: Apache-2.0
"""What pictures decide: whether they can be read, their size, and their looks."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from rfjax.data.filters.config import FilterConfig
from rfjax.data.filters.descriptors import describe, thumbnail
from rfjax.data.sources.base import Source
from rfjax.data.sources.pictures import BrokenPicture

BROKEN = "broken picture"  # the reason


@dataclasses.dataclass(frozen=True)
class Look:
    """What is kept of a picture that was read.

    Attributes:
      size: height and width in pixels; None if the picture is broken.
      broken: what is wrong with it, in words; "" if it was read.
      digest: of its size and pixels, if exact duplicates are removed.
      thumbnail: [64, 64, 3] uint8, if near-duplicates are found by pixels.
      descriptor: [D] int16, likewise; see `descriptors`.
    """

    size: tuple[int, int] | None
    broken: str = ""
    digest: bytes = b""
    thumbnail: np.ndarray | None = None
    descriptor: np.ndarray | None = None


def look(source: Source, index: int, config: FilterConfig) -> Look:
    """Reads a picture of a source, and keeps what the rules of `config` need.

    It depends on nothing else, so pictures may be looked at in any process and order.
    Where the size is enough and the source tells it from a header, a picture that is
    damaged further on is not found.
    """
    try:
        if hasattr(source, "size") and not config.needs_pixels:
            return Look(source.size(index))
        image = source.picture(index)
    except BrokenPicture as error:
        return Look(None, broken=str(error))
    height, width, _ = image.shape
    seen = Look((height, width))
    if config.exact_duplicates:
        hasher = hashlib.blake2b(f"{height} {width} ".encode(), digest_size=16)
        hasher.update(np.ascontiguousarray(image))
        seen = dataclasses.replace(seen, digest=hasher.digest())
    if config.compares_pictures:
        small = thumbnail(image)
        seen = dataclasses.replace(seen, thumbnail=small, descriptor=describe(small))
    return seen


def broken_by(seen: Look, config: FilterConfig) -> tuple[str, str] | None:
    """The reason and the detail of the first rule that a picture breaks, if any."""
    if seen.size is None:
        return BROKEN, seen.broken
    height, width = seen.size
    short, long = sorted(seen.size)
    size = f"{width} x {height} pixels"
    if config.min_side is not None and short < config.min_side:
        return "too small", size
    if config.max_aspect is not None and long > config.max_aspect * short:
        return "too long and thin", f"{size}, {long / short:.2f} : 1"
    return None
