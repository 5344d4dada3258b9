# SPDX-License-Identifier: Apache-2.0
"""The contract of a source: numbered pictures with captions, for `encode` to take."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np

from rfjax.data.manifest import EncoderSpec, LatentSpec
from rfjax.value_types import Bounds

ImageSize = Annotated[int, Bounds(1, 8192)]  # pixels of a side


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a source knows of a picture before it is opened.

    Attributes:
      key: the source's own name of it, unique there: a path, a row, "a.tar/name".
      captions: one for each of `Source.caption_kinds`; empty where there is none.
      split: "train" or "validation"; empty: decided by the hash of its first caption.
      licence: it is under; empty if the source does not say.
      attribution: whom to name; empty if the source does not say.
      columns: what else is known, by name: scores, keywords. Filters ask for them.
      annotation: JSON-like facts to be stored, e.g. the objects and boxes of a scene.
      broken: why it cannot be read, so that only its key is known; empty if it can.
    """

    key: str
    captions: tuple[str, ...]
    split: str = ""
    licence: str = ""
    attribution: str = ""
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    annotation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    broken: str = ""


@runtime_checkable
class Source(Protocol):
    """Pictures and captions, ready to be drawn or read.

    Several processes make the same source of one config, each for itself, and share its
    records: number i is the same in all of them, always.

    Attributes:
      licence: the notice that goes wherever the pictures or their latents go.
      caption_kinds: names of the captions of an entry, identifiers.

    It may also have `notes`: what its user has to know, such as the number and names of
    files that were passed over; a line each. And `size(index)`, if that is cheaper than
    `picture`: the (height, width) of what that gives, or a BrokenPicture.
    """

    licence: str
    caption_kinds: tuple[str, ...]

    def __len__(self) -> int:
        """The number of pictures."""

    def entry(self, index: int) -> Entry:
        """What is known of a picture; cheap, since all entries are looked at."""

    def picture(self, index: int) -> np.ndarray:
        """The picture: [H, W, 3] uint8, of any size.

        Raises:
          BrokenPicture: it cannot be drawn or decoded.
        """


@runtime_checkable
class EncodedSource(Protocol):
    """Records that others have encoded: features instead of pictures.

    Attributes:
      licence: as of a `Source`.
      caption_kinds: as of a `Source`.
      latent_spec: what the latents are.
      encoder_specs: what the text states are.
    """

    licence: str
    caption_kinds: tuple[str, ...]
    latent_spec: LatentSpec
    encoder_specs: tuple[EncoderSpec, ...]

    def __len__(self) -> int:
        """The number of records."""

    def entry(self, index: int) -> Entry:
        """As of a `Source`."""

    def features(self, index: int) -> Mapping[str, np.ndarray]:
        """Latents, log-variance and text states, as a record holds them.

        Raises:
          BrokenPicture: they are damaged.
        """

    def empty_caption(self) -> Mapping[str, np.ndarray]:
        """The text states of the empty caption."""

    def save_codec(self, path: str | os.PathLike) -> None:
        """Writes what `load` of the codec's config needs, as `ImageCodec.save` does."""


@runtime_checkable
class SourceConfig(Protocol):
    """A frozen dataclass: what the config section `source` holds beside `kind`.

    Attributes:
      image_size: S; pictures are brought to S x S pixels, or to the bucket of about as
        many that is nearest in shape. What is drawn is drawn at that size.
    """

    image_size: int

    def make(self) -> Source | EncodedSource:
        """Opens the source; packages that it alone needs are imported here or later.

        Raises:
          UserError: what the fields ask for is not there.
          MissingPackageError: a package is not installed.
        """
