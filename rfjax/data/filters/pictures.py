# SPDX-License-Identifier: Apache-2.0
"""What pixels decide: whether a picture can be read, its size, and its looks."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import numpy as np

from rfjax.data.filters.config import FilterConfig
from rfjax.data.filters.descriptors import describe
from rfjax.errors import UserError

if TYPE_CHECKING:
    from rfjax.data.sources.base import Source


@dataclasses.dataclass(frozen=True)
class Look:
    """What is kept of a picture that was read.

    Attributes:
      size: height and width in pixels; None if the picture is broken.
      broken: what is wrong with it, in words; "" if it was read.
      digest: of its size and pixels, if exact duplicates are removed.
      descriptor: [D] int16, if near-duplicates are removed; see `descriptors`.
    """

    size: tuple[int, int] | None
    broken: str = ""
    digest: bytes = b""
    descriptor: np.ndarray | None = None


def look(source: Source, index: int, config: FilterConfig) -> Look:
    """Reads a picture of a source, and keeps what the rules of `config` need.

    It depends on nothing else, so pictures may be looked at in any process and order.
    """
    try:
        image = source.picture(index)
    except UserError as error:
        return Look(None, broken=str(error))
    height, width, _ = image.shape
    digest, descriptor = b"", None
    if config.exact_duplicates:
        pixels = np.ascontiguousarray(image)
        digest = hashlib.blake2b(
            pixels, digest_size=16, salt=f"{height}x{width}".encode()
        ).digest()
    if config.near_duplicates and config.embedding_column is None:
        descriptor = describe(image)
    return Look((height, width), digest=digest, descriptor=descriptor)


def broken_by(seen: Look, config: FilterConfig) -> tuple[str, str] | None:
    """The reason and the detail of the first rule that a picture breaks, if any."""
    if seen.size is None:
        return "broken picture", seen.broken
    height, width = seen.size
    short, long = sorted(seen.size)
    size = f"{width} x {height} pixels"
    if config.min_side is not None and short < config.min_side:
        return "too small", size
    if config.max_aspect is not None and long > config.max_aspect * short:
        return "too long and thin", f"{size}, {long / short:.2f} : 1"
    return None
