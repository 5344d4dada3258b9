# SPDX-License-Identifier: Apache-2.0
"""Which records of a source are left out: the config section `filters`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from rfjax.data.filters.words import words_of
from rfjax.errors import MissingFileError, UserError
from rfjax.value_types import (
    Bounds,
    Fraction,
    InputPath,
    PositiveInt,
    Real,
    Text,
    check_fields,
)

# Cosine of the angle between the descriptors of two pictures.
Similarity = Annotated[
    float, Bounds(0, 1, True, True, remedy="choose for example 0.85")
]


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Rules that a record must pass; none is set unless it is named.

    Attributes:
      remove_empty_captions: whether a record goes whose captions are all blank.
      min_caption_words: of every caption that is not blank.
      max_caption_words: of every caption that is not blank.
      min_caption_characters: of every caption that is not blank.
      max_caption_characters: of every caption that is not blank.
      licences: patterns of licences that are allowed, as "CC-BY*"; upper and lower case
        are the same. Empty: all.
      scores: column of the source -> [least, most] value; null: no bound.
      deny: words and phrases that no caption may hold; whole words, in any case.
      deny_file: more of them, a line each; "#" begins a comment.
      deny_columns: columns of the source that may not hold them either.
      min_side: pixels of a picture's shorter side, at least.
      max_aspect: longer side over shorter side, at most.
      exact_duplicates: whether only the first of pictures with the same pixels stays.
      near_duplicates: whether only the first of pictures that look the same stays.
      similarity: cosine of two descriptors from which on pictures are compared.
      max_difference: of pictures that look the same: once one is laid on the other, in
        the tile that differs most, relative to the picture's contrast.
      embedding_column: column of the source that holds a descriptor of each picture,
        such as SSCD's: `similarity` alone then decides. Null: pixels do.
    """

    remove_empty_captions: bool = False
    min_caption_words: PositiveInt | None = None
    max_caption_words: PositiveInt | None = None
    min_caption_characters: PositiveInt | None = None
    max_caption_characters: PositiveInt | None = None
    licences: tuple[Text, ...] = ()
    scores: Mapping[str, tuple[Real | None, Real | None]] = dataclasses.field(
        default_factory=dict
    )
    deny: tuple[Text, ...] = ()
    deny_file: InputPath | None = None
    deny_columns: tuple[Text, ...] = ()
    min_side: PositiveInt | None = None
    max_aspect: Annotated[float, Bounds(1)] | None = None
    exact_duplicates: bool = False
    near_duplicates: bool = False
    similarity: Similarity = 0.85
    max_difference: Fraction = 0.35
    embedding_column: Text | None = None

    def __post_init__(self):
        check_fields(self, section="filters")
        for unit in ("words", "characters"):
            low = getattr(self, f"min_caption_{unit}")
            high = getattr(self, f"max_caption_{unit}")
            _check_range(f"caption_{unit}", low, high)
        for column, (low, high) in self.scores.items():
            _check_range(f"scores.{column}", low, high)
            if low is None and high is None:
                raise UserError(
                    f"filters.scores.{column} must have a bound, got [null, null]; "
                    "give the least or the most value, or leave the column out."
                )
        if self.deny_columns and not (self.deny or self.deny_file):
            raise UserError(
                "filters.deny_columns must come with filters.deny or "
                "filters.deny_file, got neither; name the words."
            )
        if self.embedding_column and not self.near_duplicates:
            raise UserError(
                "filters.embedding_column must come with filters.near_duplicates, got "
                "near_duplicates=false; set it, or leave the column out."
            )
        _phrases(self.deny, field="filters.deny")

    @property
    def compares_pictures(self) -> bool:
        """Whether near-duplicates are found by pixels."""
        return self.near_duplicates and self.embedding_column is None

    @property
    def needs_pixels(self) -> bool:
        """Whether any rule asks for more of a picture than its size."""
        return self.exact_duplicates or self.compares_pictures

    @property
    def pixel_rules(self) -> tuple[str, ...]:
        """Fields of the rules that look at pictures."""
        rules = {
            "filters.min_side": self.min_side is not None,
            "filters.max_aspect": self.max_aspect is not None,
            "filters.exact_duplicates": self.exact_duplicates,
            "filters.near_duplicates": self.compares_pictures,
        }
        return tuple(name for name, is_set in rules.items() if is_set)

    @property
    def reads_pictures(self) -> bool:
        """Whether any rule looks at pictures."""
        return bool(self.pixel_rules)

    def denied(self) -> tuple[tuple[str, ...], ...]:
        """The denied phrases, of one word or more, as `words_of` gives them.

        Raises:
          MissingFileError: `deny_file` is not there.
          UserError: an entry has no letter or digit, or the file no entry.
        """
        phrases = _phrases(self.deny, field="filters.deny")
        if self.deny_file is None:
            return phrases
        return phrases + _read_phrases(Path(self.deny_file))


def _check_range(name: str, low: float | None, high: float | None) -> None:
    if low is not None and high is not None and low > high:
        raise UserError(
            f"filters.{name} must have a least value up to the most, got "
            f"[{low}, {high}]; exchange them."
        )


def _phrases(entries: tuple[str, ...], *, field: str) -> tuple[tuple[str, ...], ...]:
    phrases = tuple(tuple(words_of(entry)) for entry in entries)
    for entry, phrase in zip(entries, phrases, strict=True):
        if not phrase:
            raise UserError(
                f"{field} must hold words with a letter or a digit, got {entry!r}; "
                "remove it."
            )
    return phrases


def _read_phrases(path: Path) -> tuple[tuple[str, ...], ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"filters.deny_file must be text in UTF-8, got {path} ({error.reason} at "
            f"byte {error.start}); correct its encoding."
        ) from None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        found = "a folder" if path.is_dir() else "which does not exist"
        raise MissingFileError(
            f"filters.deny_file must be a text file, got {path}, {found}; correct the "
            "path."
        ) from None
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    phrases = _phrases(tuple(filter(None, lines)), field="filters.deny_file")
    if not phrases:
        raise UserError(
            f"filters.deny_file must hold a word, got {path} with none; fill it, or "
            "leave it out."
        )
    return phrases
