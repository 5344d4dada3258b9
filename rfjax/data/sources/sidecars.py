# SPDX-License-Identifier: Apache-2.0
"""Files beside a picture with the same name and another ending: a.txt, a.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rfjax.data.sources.columns import decode_text
from rfjax.data.sources.pictures import BrokenPicture

# Endings of what is read; other files are left alone.
TEXT_SUFFIXES = frozenset({"txt", "text", "caption", "json"})


def row_of(parts: Mapping[str, bytes], *, key: str) -> dict[str, Any]:
    """The columns that the files beside a picture make.

    A text file is a column by the name of its ending; each field of a JSON object is
    one by its own, unless a text file has that name.

    Args:
      parts: ending without dot -> content.
      key: of the picture, for errors.

    Raises:
      BrokenPicture: a file is no UTF-8, or no JSON.
    """
    row: dict[str, Any] = {}
    texts: dict[str, Any] = {}
    for suffix, content in parts.items():
        text = decode_text(content, what=f"file {suffix} of picture {key}")
        if suffix.rpartition(".")[2] != "json":
            texts[suffix] = text
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BrokenPicture(
                f"file {suffix} of picture {key} must be JSON, got {text[:80]!r} "
                f"({error}); correct it."
            ) from None
        if isinstance(value, dict):
            row |= value
        else:
            texts[suffix] = value
    return row | texts


class Tally:
    """Counts files and remembers the first; as text one line, empty if none came."""

    def __init__(self, what: str, *, first: int = 3):
        """Starts at none.

        Args:
          what: they are, in words.
          first: how many are named.
        """
        self._what, self._first = what, first
        self._count, self._names = 0, []

    def add(self, name: str) -> None:
        """Counts a file."""
        self._count += 1
        if self._count <= self._first:
            self._names.append(name)

    def __str__(self) -> str:
        if not self._count:
            return ""
        more = ", ..." * (self._count > self._first)
        return f"{self._what}: {self._count:,} ({', '.join(self._names)}{more})"
