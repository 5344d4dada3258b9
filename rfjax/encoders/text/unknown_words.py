# SPDX-License-Identifier: Apache-2.0
"""Which words of captions a text encoder does not know, told in one sentence."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from rfjax.encoders.text.base import EncodedText
from rfjax.encoders.text.tokens import excerpt

MOST_WORDS = 10  # that are named


class UnknownWords:
    """Collects the unknown words of many captions.

    Args:
      encoder: name of the text encoder.
    """

    def __init__(self, encoder: str):
        self._encoder = encoder
        self._num_captions, self._num_affected = 0, 0
        self._example = ""
        self._words: collections.Counter[str] = collections.Counter()

    def add(self, captions: Sequence[str], text: EncodedText) -> None:
        """Counts the unknown words of captions that were encoded."""
        self._num_captions += len(captions)
        for caption, words in zip(captions, text.unknown_words, strict=False):
            if words:
                self._example = self._example or caption
                self._num_affected += 1
                # In their order: a set has another one in each process.
                self._words.update(dict.fromkeys(words, 1))

    @property
    def counts(self) -> dict[str, Any]:
        """What was counted, as plain values."""
        return {
            "num_captions": self._num_captions,
            "num_affected": self._num_affected,
            "example": self._example,
            "words": dict(self._words),
        }

    def add_counts(self, counts: Mapping[str, Any]) -> None:
        """Adds the `counts` of other captions of the same encoder."""
        self._num_captions += counts["num_captions"]
        self._num_affected += counts["num_affected"]
        self._example = self._example or counts["example"]
        self._words.update(counts["words"])

    def __str__(self) -> str:
        """One sentence with counts and examples; empty if every word is known."""
        if not self._words:
            return ""
        words = ", ".join(repr(w) for w, _ in self._words.most_common(MOST_WORDS))
        more = len(self._words) - MOST_WORDS
        return (
            f"{self._num_affected} of {self._num_captions} captions, such as "
            f"{excerpt(self._example)!r}, have words that the text encoder "
            f"{self._encoder} cannot read: {words}"
            f"{f' and {more} more' if more > 0 else ''}."
        )
