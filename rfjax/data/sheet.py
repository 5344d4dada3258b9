# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: small pictures in rows, each with its caption below."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rfjax import whole_files

_PAPER = (250, 250, 248)
_INK = (32, 33, 36)
_FAINT = (120, 122, 128)
_FRAME = (222, 222, 218)

_MARGIN = 28
_GAP = 18
_CAPTION_SIZE = 15
_CAPTION_LINES = 4
_LINE_HEIGHT = 19


@dataclasses.dataclass(frozen=True)
class Section:
    """A block of the sheet.

    Attributes:
      title: heading of the block.
      images: N pictures, each [H, W, 3] uint8.
      captions: N captions.
    """

    title: str
    images: Sequence[np.ndarray]
    captions: Sequence[str]


def draw_sheet(
    sections: Sequence[Section],
    *,
    title: str,
    footer: str = "",
    columns: int = 8,
    picture_size: int = 128,
) -> Image.Image:
    """Draws sections of pictures with captions.

    Args:
      sections: drawn one below the other.
      title: headline.
      footer: small print, e.g. a licence; wrapped to the width.
      columns: pictures in a row.
      picture_size: longest side of a picture on the sheet; whole multiples stay sharp.

    Returns:
      An RGB picture.
    """
    fonts = {size: ImageFont.load_default(size) for size in (_CAPTION_SIZE, 13, 18, 26)}
    width = 2 * _MARGIN + columns * picture_size + (columns - 1) * _GAP
    footer_lines = _wrap(footer, fonts[13], width - 2 * _MARGIN) if footer else []
    wrapped = [
        [
            _wrap(text, fonts[_CAPTION_SIZE], picture_size + 8)
            for text in section.captions
        ]
        for section in sections
    ]
    # A row is as high as its longest caption.
    row_lines = [
        [
            max(min(len(lines), _CAPTION_LINES) for lines in texts[i : i + columns])
            for i in range(0, len(texts), columns)
        ]
        for texts in wrapped
    ]
    height = _MARGIN + 44
    for rows in row_lines:
        height += 40
        height += sum(picture_size + 10 + n * _LINE_HEIGHT + _GAP for n in rows)
    height += 18 * len(footer_lines) + _MARGIN

    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 4), title, _INK, font=fonts[26])
    top = _MARGIN + 44
    for section, texts, rows in zip(sections, wrapped, row_lines, strict=True):
        draw.text((_MARGIN, top + 6), section.title, _FAINT, font=fonts[18])
        top += 40
        for row, num_lines in enumerate(rows):
            for column in range(columns):
                index = row * columns + column
                if index >= len(texts):
                    break
                left = _MARGIN + column * (picture_size + _GAP)
                _draw_picture(
                    sheet, draw, section.images[index], left, top, picture_size
                )
                _draw_caption(
                    draw,
                    texts[index],
                    fonts[_CAPTION_SIZE],
                    centre=left + picture_size / 2,
                    top=top + picture_size + 8,
                )
            top += picture_size + 10 + num_lines * _LINE_HEIGHT + _GAP
    for line in footer_lines:
        draw.text((_MARGIN, top), line, _FAINT, font=fonts[13])
        top += 18
    return sheet


def save_picture(picture: Image.Image, path: str | os.PathLike) -> None:
    """Writes a picture in one step; the ending of `path` decides the format."""
    with whole_files.replacing(path) as partial:
        picture.save(partial)


def _draw_picture(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    image: np.ndarray,
    left: int,
    top: int,
    size: int,
) -> None:
    picture = Image.fromarray(image)
    longest = max(picture.size)
    is_whole = size % longest == 0
    method = Image.Resampling.NEAREST if is_whole else Image.Resampling.LANCZOS
    width, height = (max(1, round(side * size / longest)) for side in picture.size)
    left, top = left + (size - width) // 2, top + (size - height) // 2
    sheet.paste(picture.resize((width, height), method), (left, top))
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=_FRAME)


def _draw_caption(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont,
    *,
    centre: float,
    top: int,
) -> None:
    if len(lines) > _CAPTION_LINES:
        lines = [*lines[: _CAPTION_LINES - 1], lines[_CAPTION_LINES - 1] + " …"]
    for number, line in enumerate(lines):
        place = (centre, top + number * _LINE_HEIGHT)
        draw.text(place, line, _INK, font=font, anchor="ma")


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Breaks a text at spaces so that each line fits, if its words do."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
