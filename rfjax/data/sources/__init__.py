# SPDX-License-Identifier: Apache-2.0
"""Sources of pictures and captions: one file per source, and the table of them all."""

from rfjax.data.sources.base import Entry, Source, SourceConfig
from rfjax.data.sources.emoji import EmojiConfig
from rfjax.data.sources.emoji_scenes import ScenesConfig

__all__ = ["SOURCES", "Entry", "Source", "SourceConfig"]

# `source.kind` of an encode config -> the other fields.
SOURCES: dict[str, type[SourceConfig]] = {
    "emoji": EmojiConfig,
    "emoji_scenes": ScenesConfig,
}
