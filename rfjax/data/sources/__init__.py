# SPDX-License-Identifier: Apache-2.0
"""Sources of pictures and captions: one file per source, and the table of them all."""

from rfjax.data.sources.base import EncodedSource, Entry, Source, SourceConfig
from rfjax.data.sources.emoji import EmojiConfig
from rfjax.data.sources.emoji_scenes import ScenesConfig
from rfjax.data.sources.image_folder import ImageFolderConfig
from rfjax.data.sources.mlperf_flux import MLPerfFluxConfig
from rfjax.data.sources.openclipart import OpenClipartConfig
from rfjax.data.sources.saved_dataset import SavedDatasetConfig
from rfjax.data.sources.table import TableConfig
from rfjax.data.sources.tfds_images import TfdsImagesConfig
from rfjax.data.sources.webdataset import WebDatasetConfig

__all__ = ["SOURCES", "EncodedSource", "Entry", "Source", "SourceConfig"]

# `source.kind` of an encode config -> the other fields.
SOURCES: dict[str, type[SourceConfig]] = {
    "emoji": EmojiConfig,
    "emoji_scenes": ScenesConfig,
    "openclipart": OpenClipartConfig,
    "image_folder": ImageFolderConfig,
    "table": TableConfig,
    "webdataset": WebDatasetConfig,
    "saved_dataset": SavedDatasetConfig,
    "tfds_images": TfdsImagesConfig,
    "mlperf_flux": MLPerfFluxConfig,
}
