# SPDX-License-Identifier: Apache-2.0
"""One emoji in each picture, under its name.

There is one picture for each caption, so a model memorises them; held-out names
show how it fails.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np

from rfjax.data.sources.base import Entry, ImageSize
from rfjax.data.sources.emoji_groups import EMOJI_GROUPS
from rfjax.data.sources.held_out import is_held_out
from rfjax.data.sources.openmoji import (
    AUTHOR,
    COLOURS,
    LICENCE,
    LICENCE_NAME,
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
    caption_kinds = ("name",)

    def __init__(self, config: EmojiConfig):
        self._config = config
        self._characters = [c for group in config.groups for c in EMOJI_GROUPS[group]]
        self._characters = self._characters[: config.max_emoji]
        splits = [self.entry(index).split for index in range(len(self))]
        for split in ("train", "validation"):
            if split not in splits:
                raise UserError(
                    f"source.validation_fraction {config.validation_fraction} leaves "
                    f"no emoji in the split {split}; choose a fraction nearer to 0.5, "
                    "or more emoji."
                )

    def __len__(self) -> int:
        return len(self._characters)

    def entry(self, index: int) -> Entry:
        """The name of an emoji, and its split."""
        character = self._characters[index]
        name = emoji_name(character)
        held_out = is_held_out(name, fraction=self._config.validation_fraction)
        return Entry(
            key=character,
            captions=(name,),
            split="validation" if held_out else "train",
            licence=LICENCE_NAME,
            attribution=AUTHOR,
            annotation={"emoji": character},
        )

    def picture(self, index: int) -> np.ndarray:
        """An emoji on the background: [image_size, image_size, 3] uint8."""
        config = self._config
        canvas = make_canvas(config.image_size, config.background)
        emoji = render_emoji(self._characters[index], config.image_size)
        paste(canvas, emoji, top=0, left=0)
        return canvas
