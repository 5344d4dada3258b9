# SPDX-License-Identifier: Apache-2.0
"""SVG drawings to pixels, cut to what they show.

Rendered by resvg (package resvg-py), which is imported when something is drawn. Fonts
of the system are left out: a drawing has the same pixels on every machine, and text
that was not turned into outlines is not drawn.
"""

from __future__ import annotations

import io
import math
import os

import numpy as np
from PIL import Image

from rfjax.data.sources.pictures import WHITE, BrokenPicture, Colour
from rfjax.packages import import_package

# Pixels per inch of lengths in mm or pt, as drawing programs of the time had it.
# Without any, resvg finds no size in drawings whose size is in such lengths.
_DPI = 90.0

# The largest canvas in pixels of a side, for drawings that fill little of their page.
_LARGEST = 1024


def draw_svg(path: str | os.PathLike, *, size: int, name: str) -> np.ndarray:
    """Draws what an SVG file shows, cut off where nothing more is drawn.

    The page does not matter: its size may be missing, and many drawings lie in a
    corner of a sheet of paper. The drawing keeps its aspect ratio.

    Args:
      path: of the file.
      size: the drawing has about size * size pixels, or up to half as many; fewer if it
        is very long or a speck on its page.
      name: of the record, for errors.

    Returns:
      [H, W, 4] uint8, straight alpha.

    Raises:
      BrokenPicture: no file, not an SVG that resvg reads, or nothing is drawn.
      MissingPackageError: resvg-py is not installed.
    """
    side = size
    while True:
        drawing = _draw(path, side, name)
        area = drawing.shape[0] * drawing.shape[1]
        if 2 * area >= size * size or side >= _LARGEST:
            break
        # What is a pixel or less may be there and not be seen yet.
        larger = 16 if area == 0 else size / math.sqrt(area)
        side = min(math.ceil(side * larger), _LARGEST)
    if area == 0:
        raise BrokenPicture(
            f"picture {name} must show something, got an SVG file that draws nothing; "
            "replace or remove it."
        )
    return drawing


def lay_on(
    drawing: np.ndarray, background: Colour = WHITE, *, margin: int = 0
) -> np.ndarray:
    """Lays a drawing on a background: [H, W, 4] -> [H + 2 margin, W + 2 margin, 3]."""
    height, width = drawing.shape[:2]
    canvas = Image.new(
        "RGB", (width + 2 * margin, height + 2 * margin), tuple(background)
    )
    picture = Image.fromarray(drawing)
    canvas.paste(picture, (margin, margin), mask=picture)
    return np.array(canvas)


def _draw(path: str | os.PathLike, side: int, name: str) -> np.ndarray:
    """Draws on a canvas of at most side by side pixels; cuts off what is empty."""
    resvg = import_package("resvg_py", use="SVG drawings", extra="demo")
    try:
        # With both given, the page is fitted in: no canvas is ever larger.
        png = resvg.svg_to_bytes(
            svg_path=os.fspath(path),
            width=side,
            height=side,
            dpi=_DPI,
            skip_system_fonts=True,
        )
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BrokenPicture(
            f"picture {name} must be a whole SVG file, got: {reason}; replace or "
            "remove it."
        ) from error
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    # None: nothing is drawn.
    return np.array(image.crop(image.getchannel("A").getbbox() or (0, 0, 0, 0)))
