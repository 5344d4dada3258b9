# SPDX-License-Identifier: Apache-2.0
"""Captions of Open Clip Art drawings: what is shown, in which colour, of which kind.

A drawing has a short and a full caption, for example

    red car
    red car, toyota land cruiser

A short caption is a colour and a noun, so that a model meets the same few hundred words
in many combinations and can draw those that it never met.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rfjax.data.sources.main_colour import COLOUR_WORDS
from rfjax.data.sources.openclipart_words import KINDS, NOUNS, VAGUE_KINDS

_COLOURS = frozenset(COLOUR_WORDS) | {"gray", "golden", "seagreen"}

# What follows these words is not what is shown, but where, with what, by whom.
_TAIL = re.compile(r" (?:with|on|in|under|by|from|at|for|and|to|over|without)\b.*")
# Words after a noun that say how it is drawn.
_MANNERS = frozenset(
    "black bust colour head highlight icon outline portrait profile shaded silhouette "
    "silhouet simple sketch style stylized symbol white whole".split()
)
_MOST_KINDS = 2
_MOST_WORDS = 3  # of a short caption, without its colour and "queen of"


def captions_of(
    subject: str, colour: str, *, folders: Sequence[str], keywords: Sequence[str]
) -> tuple[str, str]:
    """The short and the full caption; no full caption belongs to two short ones.

    Args:
      subject: what the drawing shows, e.g. "toyota land cruiser".
      colour: of the drawing; "" if no word is true. Subjects that name one keep it.
      folders: that it lies in.
      keywords: as the file has them.

    Example:
      >>> captions_of("emperor penguin", "black", folders=("birds",), keywords=())
      ('black penguin', 'black emperor penguin, bird')
    """
    colour, subject = _take_colour(subject, colour)
    kinds = _kinds(folders, keywords)
    head = _TAIL.sub("", subject).split()
    while len(head) > 1 and head[-1] in _MANNERS:
        head.pop()
    noun = next((n for n in (" ".join(head[-2:]), head[-1]) if n in NOUNS), "")
    is_plain = len(subject.split()) <= _MOST_WORDS
    if " of " in subject and len(subject.split()) <= _MOST_WORDS + 2:
        short, full = subject, subject
    elif noun and " of " not in subject:
        short, full = noun, subject
    elif kinds and not (is_plain and kinds[0] in VAGUE_KINDS):
        short, full = kinds[0], f"{kinds[0]}, {subject}"
    else:
        short, full = " ".join(head[:_MOST_WORDS]), subject
    known = set(full.replace(",", "").split())
    further = [k for k in kinds if not known & {k, *k.split()}][:_MOST_KINDS]
    return f"{colour} {short}".strip(), ", ".join(
        [f"{colour} {full}".strip(), *further]
    )


def names_colour(caption: str) -> bool:
    """Whether a caption begins with a colour."""
    return caption.split(" ", 1)[0] in _COLOURS


def _take_colour(subject: str, colour: str) -> tuple[str, str]:
    """The colour that a subject names, or else its measured one; and the rest."""
    words = subject.split()
    if subject.startswith("black and white "):
        return "black and white", " ".join(words[3:])
    named = [word for word in words if word in _COLOURS]
    if not named:
        return colour, subject
    if len(named) == 1 and len(words) > 1 and named[0] in (words[0], words[-1]):
        words.remove(named[0])
        return named[0], " ".join(words)
    return "", subject


def _kinds(folders: Sequence[str], keywords: Sequence[str]) -> list[str]:
    """The kinds of thing that folders and keywords name, the most specific first."""
    named = {KINDS.get(word.strip().lower()) for word in (*folders, *keywords)}
    return [kind for kind in dict.fromkeys(KINDS.values()) if kind in named]
