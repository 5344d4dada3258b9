# SPDX-License-Identifier: Apache-2.0
"""Picture files of any mode to RGB pixels, as a viewer would show them.

Pixels become sRGB: an embedded colour profile is applied, 16 bits are scaled to 8,
palettes looked up, transparent parts laid on a background. The orientation that a
camera has noted is applied, and the first frame stands for an animation. All of
it is Pillow's work, but for what Pillow clips or leaves undone.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import warnings
from collections.abc import Iterator
from typing import Annotated

import numpy as np
from PIL import Image, ImageCms

from rfjax.errors import UserError, refusal_of_disk
from rfjax.value_types import Bounds

_Channel = Annotated[int, Bounds(0, 255, remedy="choose for example 255")]
Colour = tuple[_Channel, _Channel, _Channel]  # red, green, blue in sRGB
WHITE: Colour = (255, 255, 255)

# Endings of the names of picture files.
PICTURE_SUFFIXES = frozenset(
    ".jpg .jpeg .jfif .png .webp .gif .bmp .tif .tiff .avif .jp2 .ppm .pgm".split()
)
# Pillow's names of formats. Its others are left out: some start programs, such as EPS.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")

# A picture of 1 MB can have more than any memory holds; Pillow refuses from here on.
MOST_PIXELS = 178_956_970

_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSE = Image.Transpose
_UPRIGHT = {
    2: _TRANSPOSE.FLIP_LEFT_RIGHT,
    3: _TRANSPOSE.ROTATE_180,
    4: _TRANSPOSE.FLIP_TOP_BOTTOM,
    5: _TRANSPOSE.TRANSPOSE,
    6: _TRANSPOSE.ROTATE_270,
    7: _TRANSPOSE.TRANSVERSE,
    8: _TRANSPOSE.ROTATE_90,
}
_PHOTOMETRIC = 262  # TIFF tag; 0: white is the smallest value
_BITS_PER_SAMPLE = 258  # TIFF tag

# Mode -> the colour space that a profile of it describes.
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}

Picture = bytes | str | os.PathLike


class BrokenPicture(UserError):
    """A picture that cannot be decoded; its message names the record."""


def decode_picture(
    picture: Picture, *, name: str, background: Colour = WHITE
) -> np.ndarray:
    """The pixels of a picture file, upright and in sRGB: [H, W, 3] uint8.

    A profile that is damaged, or of other channels than the picture's, is ignored.

    Args:
      picture: the file's content, or its path.
      name: of the record, for errors.
      background: what shows through where the picture is transparent.

    Raises:
      BrokenPicture: the file is not there, damaged, cut off, of no known format, larger
        than `MOST_PIXELS`, or its pixels have no stated range (32 bits each).
    """
    with _opened(picture, name=name) as image:
        image.load()
        upright = _UPRIGHT.get(_orientation(image))
        colours, alpha = _split_alpha(image)
        colours = _in_srgb(colours, image.info.get("icc_profile"))
        if alpha is not None:
            canvas = Image.new("RGB", colours.size, tuple(background))
            canvas.paste(colours, mask=alpha)
            colours = canvas
        if upright is not None:
            colours = colours.transpose(upright)
        return np.array(colours)


def read_size(picture: Picture, *, name: str) -> tuple[int, int]:
    """(height, width) of a picture file in pixels when upright, mostly from its header.

    A picture whose header is whole may still be damaged.

    Args:
      picture: the file's content, or its path.
      name: of the record, for errors.

    Raises:
      BrokenPicture: see `decode_picture`.
    """
    with _opened(picture, name=name) as image:
        width, height = image.size
        # Pillow turns the sizes of TIFF by itself.
        if image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8):
            width, height = height, width
        return height, width


@contextlib.contextmanager
def _opened(picture: Picture, *, name: str) -> Iterator[Image.Image]:
    """Within the block, the open picture; whatever Pillow finds is a BrokenPicture."""
    file = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    try:
        # A data set of millions has thousands of odd headers, which do no harm.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=_FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                yield image
    except (BrokenPicture, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BrokenPicture(
            f"picture {name} must have at most {MOST_PIXELS:,} pixels, got more; make "
            "it smaller, or remove it."
        ) from None
    except Exception as error:
        if refusal_of_disk(error) is not None:
            raise  # the disk is broken, not the picture
        reason = " ".join(_reason(error).split())[:200]
        raise BrokenPicture(
            f"picture {name} must be a whole file of {', '.join(_FORMATS)}, got: "
            f"{reason}; replace or remove it."
        ) from error


def _reason(error: Exception) -> str:
    """What is wrong, without the names of things in memory."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "no such format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    """How the camera was held: 1 to 8; other values, and damaged ones, mean upright."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours in a mode of `_SPACES` or YCbCr, and how opaque they are (mode L)."""
    if image.mode.startswith("I") or image.mode == "F":
        return _in_8_bits(image)
    if image.has_transparency_data:
        straight = image.convert("RGBA")
        colours = straight.convert("RGB")
        is_grey = image.mode in ("1", "L", "LA", "La")
        return colours.convert("L") if is_grey else colours, straight.getchannel("A")
    if image.mode in _SPACES or image.mode == "YCbCr":
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _in_8_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Grey of up to 16 bits, which Pillow would clip at 255."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("pixels of 32 bits, whose black and white are not stated")
    pixels = np.asarray(image).astype(np.uint32)
    white, inverted = 65535, False
    if image.format == "TIFF":
        white = 2 ** image.tag_v2[_BITS_PER_SAMPLE][0] - 1
        inverted = image.tag_v2.get(_PHOTOMETRIC) == 0
    grey = ((pixels * 255 + white // 2) // white).astype(np.uint8)
    alpha = None
    if "transparency" in image.info:
        opaque = pixels != image.info["transparency"]
        alpha = Image.fromarray(opaque.astype(np.uint8) * 255)
    return Image.fromarray(255 - grey if inverted else grey), alpha


def _in_srgb(colours: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours in mode RGB, by the profile that describes them if there is one."""
    transform = None
    if profile or colours.mode == "LAB":
        transform = _transform(profile, colours.mode)
    if transform is not None:
        return ImageCms.applyTransform(colours, transform)
    return colours.convert("RGB")


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None if it cannot be used for pictures of a mode."""
    try:
        source = ImageCms.createProfile("LAB")
        if mode != "LAB":
            source = ImageCms.getOpenProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() != _SPACES.get(mode):
                return None
        target = ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(source, target, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError):
        return None
