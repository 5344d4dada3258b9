# SPDX-License-Identifier: Apache-2.0
"""Which captions a text encoder has cut, told in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rfjax.encoders.text.base import EncodedText
from rfjax.encoders.text.tokens import excerpt


class CutCaptions:
    """Counts the captions that had too many tokens.

    Args:
      encoder: name of the text encoder.
      length: T, the tokens that it takes.
    """

    def __init__(self, encoder: str, length: int):
        self._encoder, self._length = encoder, length
        self._num_captions, self._num_cut = 0, 0
        self._longest, self._example = 0, ""

    def add(self, captions: Sequence[str], text: EncodedText) -> None:
        """Counts captions that were encoded."""
        self._num_captions += len(captions)
        if text.num_tokens is None:
            return
        self._num_cut += int((text.num_tokens > self._length).sum())
        row = int(np.argmax(text.num_tokens))
        if text.num_tokens[row] > max(self._longest, self._length):
            self._longest, self._example = int(text.num_tokens[row]), captions[row]

    @property
    def counts(self) -> dict[str, Any]:
        """What was counted, as plain values."""
        return {
            "length": self._length,
            "num_captions": self._num_captions,
            "num_cut": self._num_cut,
            "longest": self._longest,
            "example": self._example,
        }

    def add_counts(self, counts: Mapping[str, Any]) -> None:
        """Adds the `counts` of other captions of the same encoder."""
        self._num_captions += counts["num_captions"]
        self._num_cut += counts["num_cut"]
        if counts["longest"] > self._longest:
            self._longest, self._example = counts["longest"], counts["example"]

    def __str__(self) -> str:
        """One sentence with counts and the longest; empty if none was cut."""
        if not self._num_cut:
            return ""
        return (
            f"{self._num_cut} of {self._num_captions} captions were cut to the "
            f"{self._length} tokens that the text encoder {self._encoder} takes, the "
            f"longest of {self._longest}: {excerpt(self._example)!r}."
        )
