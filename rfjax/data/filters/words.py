# SPDX-License-Identifier: Apache-2.0
"""The words of a text, for counting and for finding them."""

from __future__ import annotations

import functools
import re
import unicodedata

# Kana and ideographs: scripts that are written without spaces.
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def words_of(text: str) -> list[str]:
    """The words of a text, without case, punctuation and variants of letters.

    What joins words ends them: "hand-gun", "hand_gun" and "hand gun" are two words.
    Scripts that are written without spaces give one word for each character.

    >>> words_of("A red-hot CAR, naïve_picture")
    ['a', 'red', 'hot', 'car', 'naïve', 'picture']
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("_", " ")
    return _word().findall(_UNSPACED.sub(r" \g<0> ", text))


@functools.cache
def _word() -> re.Pattern[str]:
    """A run of letters, digits and marks, without which Indic words would be parted."""
    marks = (c for c in map(chr, range(0x20000)) if unicodedata.category(c)[0] == "M")
    return re.compile(rf"[\w{''.join(marks)}]+")
