# SPDX-License-Identifier: Apache-2.0
"""Runs that read an encoded data set from disk: `data.kind` is `shards`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from rfjax import schema
from rfjax.data.base import Dataset
from rfjax.data.manifest import Manifest
from rfjax.data.reading import Records
from rfjax.data.shards.check import check_shards
from rfjax.data.shards.layout import read_manifest
from rfjax.data.shards.read import open_split, read_codec, read_empty_caption
from rfjax.encoders.images import ImageCodec
from rfjax.value_types import InputPath


@dataclasses.dataclass(frozen=True)
class ShardsConfig(Dataset):
    """An encoded data set on disk.

    Attributes:
      path: folder that holds rfjax.json.
    """

    path: InputPath = schema.changeable()

    def folders(self) -> tuple[str]:
        """PATH alone."""
        return (self.path,)

    def moved_to(self, folders: Sequence[str]) -> ShardsConfig:
        """The same data set in another folder."""
        return dataclasses.replace(self, path=folders[0])

    def manifest(self) -> Manifest:
        """Reads PATH/rfjax.json."""
        return read_manifest(self.path)

    def check(self) -> None:
        """Checks files by size, and those of a small data set by their checksums too.

        So damaged data is never mistaken for a training problem.
        """
        check_shards(self.path)

    def records(self, split: str) -> Records:
        """Opens one split; a damaged record is found when it is read."""
        return open_split(self.path, split)

    def empty_caption(self) -> Mapping[str, np.ndarray]:
        """Reads PATH/empty_caption.npz."""
        return read_empty_caption(self.path)

    def codec(self) -> ImageCodec:
        """Reads PATH/codec.npz."""
        return read_codec(self.path, folders=self.encoders)
