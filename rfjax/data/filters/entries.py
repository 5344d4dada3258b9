# SPDX-License-Identifier: Apache-2.0
"""What metadata decides, before a picture is opened."""

from __future__ import annotations

import collections
import fnmatch
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rfjax.data.filters.config import FilterConfig
from rfjax.data.filters.pictures import BROKEN
from rfjax.data.filters.words import words_of
from rfjax.data.sources.base import Entry
from rfjax.errors import UserError


class EntryRules:
    """The rules of a `FilterConfig` that need no pixels, in their order.

    They note which columns they see: `check_columns` refuses, after the last record, a
    rule about what no record has.
    """

    def __init__(self, config: FilterConfig):
        self._config = config
        self._licences = tuple(pattern.casefold() for pattern in config.licences)
        self._denied = collections.defaultdict(list)  # first word -> phrases
        for phrase in config.denied():
            self._denied[phrase[0]].append(phrase)
        self._columns: set[str] = set()
        self._has_licences = False
        self._num_entries = 0
        self._embedding_length: int | None = None

    def broken_by(self, entry: Entry) -> tuple[str, str] | None:
        """The reason and the detail of the first rule that a record breaks, if any."""
        self._num_entries += 1
        self._columns.update(entry.columns)
        self._has_licences |= bool(entry.licence)
        if entry.broken:
            return BROKEN, entry.broken
        for rule in (
            self._caption,
            self._licence,
            self._score,
            self._word,
            self._embedding,
        ):
            for reason, detail in rule(entry):
                return reason, detail
        return None

    def check_columns(self) -> None:
        """Checks that the rules were about something, once all records were seen.

        Raises:
          UserError: no record has a licence, or a column that a rule names.
        """
        config = self._config
        if not self._num_entries:
            return
        columns = ", ".join(sorted(self._columns)) or "no columns"
        if config.licences and not self._has_licences:
            raise UserError(
                "filters.licences must be for a source with a licence in its records, "
                f"got one with none in {self._num_entries} (it has {columns}); name "
                "its column in the section source, or leave the rule out."
            )
        needed = {
            **{column: f"scores.{column}" for column in config.scores},
            **{column: "deny_columns" for column in config.deny_columns},
        }
        if config.embedding_column is not None:
            needed[config.embedding_column] = "embedding_column"
        for column, field in needed.items():
            if column not in self._columns:
                raise UserError(
                    f"filters.{field} must name a column of the source, got "
                    f"{column!r}; it has {columns}."
                )

    def _caption(self, entry: Entry) -> Iterator[tuple[str, str]]:
        config = self._config
        captions = [caption for caption in entry.captions if caption.strip()]
        if config.remove_empty_captions and not captions:
            yield "no caption", ""
        for caption in captions:
            counts = {"words": len(words_of(caption)), "characters": len(caption)}
            for unit, count in counts.items():
                low = getattr(config, f"min_caption_{unit}")
                high = getattr(config, f"max_caption_{unit}")
                if low is not None and count < low:
                    yield "caption too short", f"{count} {unit}, fewer than {low}"
                if high is not None and count > high:
                    yield "caption too long", f"{count} {unit}, more than {high}"

    def _licence(self, entry: Entry) -> Iterator[tuple[str, str]]:
        if not self._licences:
            return
        licence = entry.licence.casefold()
        if not any(fnmatch.fnmatchcase(licence, p) for p in self._licences):
            yield "licence not allowed", entry.licence or "none"

    def _score(self, entry: Entry) -> Iterator[tuple[str, str]]:
        for column, (low, high) in self._config.scores.items():
            score = _number(entry.columns.get(column))
            if score is None:
                yield f"{column} missing", _spell(entry.columns.get(column))
            elif low is not None and score < low:
                yield f"{column} too low", f"{score:g}, less than {low:g}"
            elif high is not None and score > high:
                yield f"{column} too high", f"{score:g}, more than {high:g}"

    def _word(self, entry: Entry) -> Iterator[tuple[str, str]]:
        if not self._denied:
            return
        columns = self._config.deny_columns
        texts = [*entry.captions, *_texts(entry.columns, columns)]
        for text in texts:
            words = words_of(text)
            for place, word in enumerate(words):
                for phrase in self._denied.get(word, ()):
                    if tuple(words[place : place + len(phrase)]) == phrase:
                        yield "denied word", " ".join(phrase)

    def _embedding(self, entry: Entry) -> Iterator[tuple[str, str]]:
        column = self._config.embedding_column
        if column is None:
            return
        value = entry.columns.get(column)
        length = _vector_length(value)
        if not length:
            yield f"{column} missing", _spell(value)
        elif self._embedding_length not in (None, length):
            yield f"{column} of another length", f"{length}"
        else:
            self._embedding_length = length


def _vector_length(value: Any) -> int:
    """Numbers in the vector that a column holds; 0 if it holds none, or only zeros."""
    try:
        vector = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return 0
    is_vector = vector.ndim == 1 and np.isfinite(vector).all() and vector.any()
    return len(vector) if is_vector else 0


def _texts(columns: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    """The texts of columns, of which each may be a text or a list of them."""
    for name in names:
        value = columns.get(name)
        if isinstance(value, list | tuple):
            yield from map(str, value)
        elif value is not None:
            yield str(value)


def _number(value: Any) -> float | None:
    """The number that a column holds; None if it holds none."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _spell(value: Any) -> str:
    text = "" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
