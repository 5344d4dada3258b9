# SPDX-License-Identifier: Apache-2.0
"""One emoji in each picture, under its name.

There is one picture for each caption, so a model memorises them; held-out names
show how it fails.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from rfjax.data.sources.base import Example, ImageSize
from rfjax.data.sources.emoji_groups import EMOJI_GROUPS
from rfjax.data.sources.held_out import is_held_out
from rfjax.data.sources.openmoji import (
    COLOURS,
    LICENCE,
    emoji_name,
    make_canvas,
    paste,
    render_emoji,
)
from rfjax.errors import UserError
from rfjax.value_types import OneOf, OpenFraction, PositiveInt, check_fields


@dataclasses.dataclass(frozen=True)
class EmojiConfig:
    """Which emoji, and how they are drawn.

    Attributes:
      groups: keys of `EMOJI_GROUPS`.
      image_size: pixels of a side.
      background: key of `COLOURS`.
      validation_fraction: share of the names that is held out, chosen by hash.
      max_emoji: take only the first so many; all when None.
    """

    groups: tuple[Annotated[str, OneOf(EMOJI_GROUPS)], ...] = ("animals",)
    image_size: ImageSize = 32
    background: Annotated[str, OneOf(COLOURS)] = "white"
    validation_fraction: OpenFraction = 0.1
    max_emoji: PositiveInt | None = None

    def __post_init__(self):
        check_fields(self, section="source")
        if not self.groups:
            raise UserError(
                f"source.groups must hold at least one of {', '.join(EMOJI_GROUPS)}, "
                "got none; add one."
            )

    def make(self) -> EmojiSource:
        """Names the emoji and parts them into the splits.

        Raises:
          UserError: a split would have none.
          MissingPackageError: the package emoji is not installed.
        """
        return EmojiSource(self)


class EmojiSource:
    """One emoji in each picture, its name as the caption."""

    licence = LICENCE

    def __init__(self, config: EmojiConfig):
        self._config = config
        characters = [c for group in config.groups for c in EMOJI_GROUPS[group]]
        self._splits = {"train": [], "validation": []}
        for character in characters[: config.max_emoji]:
            held_out = is_held_out(
                emoji_name(character), fraction=config.validation_fraction
            )
            self._splits["validation" if held_out else "train"].append(character)
        for split, chosen in self._splits.items():
            if not chosen:
                raise UserError(
                    f"source.validation_fraction {config.validation_fraction} leaves "
                    f"no emoji in the split {split}; choose a fraction nearer to 0.5, "
                    "or more emoji."
                )

    @property
    def splits(self) -> dict[str, int]:
        """Split name -> number of examples."""
        return {split: len(names) for split, names in self._splits.items()}

    def example(self, split: str, index: int) -> Example:
        """Returns one example; the same for the same arguments, always."""
        config = self._config
        character = self._splits[split][index]
        canvas = make_canvas(config.image_size, config.background)
        paste(canvas, render_emoji(character, config.image_size), top=0, left=0)
        return Example(canvas, emoji_name(character), {"emoji": character})
