# SPDX-License-Identifier: Apache-2.0
"""The contract of a source: numbered pictures with captions, for `encode` to take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np

from rfjax.value_types import Bounds

ImageSize = Annotated[int, Bounds(1, 8192)]  # pixels of a side


@dataclasses.dataclass(frozen=True)
class Example:
    """One picture and what is known about it.

    Attributes:
      image: [H, W, 3] uint8.
      caption: what it shows.
      annotation: JSON-like facts, e.g. the objects and boxes of a scene.
    """

    image: np.ndarray
    caption: str
    annotation: Mapping[str, Any]


@runtime_checkable
class Source(Protocol):
    """Pictures and captions, ready to be drawn or read.

    Attributes:
      licence: the notice that goes wherever the pictures or their latents go.
    """

    licence: str

    @property
    def splits(self) -> Mapping[str, int]:
        """Split ("train" and "validation") -> number of examples, at least one of each.

        No caption should be in both.
        """

    def example(self, split: str, index: int) -> Example:
        """Returns one example; the same for the same arguments, always."""


@runtime_checkable
class SourceConfig(Protocol):
    """A frozen dataclass: what the config section `source` holds beside `kind`.

    Attributes:
      image_size: pixels of a side of every picture.
    """

    image_size: int

    def make(self) -> Source:
        """Opens the source; packages that it alone needs are imported here or later.

        Raises:
          UserError: what the fields ask for is not there.
          MissingPackageError: a package is not installed.
        """
