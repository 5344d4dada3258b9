# SPDX-License-Identifier: Apache-2.0
"""The word for the colour of a drawing, if one word says it."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Hue in degrees from which on a word applies, up to the next one.
_HUES = (
    (0, "red"),
    (17, "orange"),
    (43, "yellow"),
    (68, "green"),
    (167, "blue"),
    (258, "purple"),
    (295, "pink"),
    (343, "red"),
)
COLOUR_WORDS = (
    *("red orange yellow green blue purple pink brown beige".split()),
    *("black grey white".split()),
)

_INK = 128  # alpha from which on a pixel belongs to the drawing
_COLOURED = 0.25  # least share of the pixels that are neither black, grey nor white ...
_ALONE = 0.7  # ... and least share of these that have the colour
_COLOURLESS = 0.03  # most of them in a drawing that has no colour
_FILLED = 0.3  # least part of its frame that something black fills


def main_colour(drawing: np.ndarray) -> str:
    """The one colour of a drawing.

    Outlines, highlights and eyes do not count: a car is red if a quarter of it has a
    colour, and nearly all of that is red. Drawings without any colour are "black",
    "grey", "white" or, if they consist of lines and white, "black and white".

    Args:
      drawing: [H, W, 4] uint8, straight alpha, cut to what is drawn.

    Returns:
      One of `COLOUR_WORDS`, "black and white", or "" if no one word is true.
    """
    opaque = drawing[..., 3] >= _INK
    if not opaque.any():
        return ""
    words = _name(drawing[opaque][:, :3])
    shares = np.bincount(words, minlength=len(COLOUR_WORDS)) / len(words)
    share = dict(zip(COLOUR_WORDS, shares.tolist(), strict=True))
    coloured = 1.0 - share["black"] - share["grey"] - share["white"]
    word = max(COLOUR_WORDS[:-3], key=share.__getitem__)
    if coloured >= _COLOURED:
        return word if share[word] >= _ALONE * coloured else ""
    return _without_colour(share, filled=float(opaque.mean()))


def _without_colour(share: dict[str, float], *, filled: float) -> str:
    """The word for a drawing that is mostly black, grey and white."""
    black, grey, white = share["black"], share["grey"], share["white"]
    if black >= 0.7 and filled >= _FILLED:
        return "black"
    if 1.0 - black - grey - white >= _COLOURLESS:
        return ""
    if grey >= 0.25 and grey + black >= 0.7:
        return "grey"
    if white >= 0.7 and black < 0.03:
        return "white"
    return "black and white" if grey < 0.25 else ""


def _name(colours: np.ndarray) -> np.ndarray:
    """[N, 3] uint8 in sRGB -> [N] numbers of `COLOUR_WORDS`."""
    hsv = np.asarray(Image.fromarray(colours[None]).convert("HSV"))[0]
    hue = hsv[:, 0] * (360 / 256)
    saturation, value = hsv[:, 1] / 255, hsv[:, 2] / 255
    starts, words = zip(*_HUES, strict=True)
    numbers = np.array([COLOUR_WORDS.index(word) for word in words])
    named = numbers[np.searchsorted(starts, hue, side="right") - 1]

    def rename(where: np.ndarray, word: str) -> None:
        named[where] = COLOUR_WORDS.index(word)

    warm = (hue >= 10) & (hue < 50)
    rename(warm & (saturation < 0.55) & (value >= 0.7), "beige")
    rename(warm & (value < 0.7), "brown")
    rename(((hue >= 343) | (hue < 10)) & (saturation < 0.55) & (value >= 0.8), "pink")
    dull = (saturation < 0.15) | (value < 0.2)
    rename(dull, "grey")
    rename(dull & (value >= 0.85), "white")
    rename((value < 0.3) & (saturation < 0.35) | (value < 0.2), "black")
    return named
