# SPDX-License-Identifier: Apache-2.0
"""The contract of an image codec: pictures to latents, and latents back to pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class ImageCodec(Protocol):
    """A codec, ready to use.

    Latents leave it with mean 0 and variance 1 over the training pictures, as training
    expects them: a scale and a shift that this takes are the codec's own, applied by
    `encode`, undone by `decode` and kept in the file that `save` writes. If it has them
    as attributes `scaling_factor` and `shift_factor`, as the autoencoders of diffusers
    do, manifests keep them too, and exports compare them. A codec that can decode at
    less cost, if not as well, has a method `decode_preview` like `decode`.

    Attributes:
      has_variance: whether it is a `PosteriorCodec`, whose posterior is kept.
      weights: digest of its weights; empty if what `save` writes holds them.
      decoding: Python code for users of an export, without rfjax: turns `latents`, as
        `decode` takes them, into `images`, as it returns them. NumPy is `np` there; it
        imports what else it needs, and reads what `save` wrote from "FOLDER/codec.npz".
    """

    has_variance: bool
    weights: str
    decoding: str

    def encode(self, images: np.ndarray) -> np.ndarray:
        """[B, H, W, 3] uint8 -> [B, h, w, C] float32 latents.

        Raises:
          UserError: not pictures of that kind.
        """

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """[B, h, w, C] latents of any float dtype -> [B, H, W, 3] uint8.

        Raises:
          UserError: not latents of this codec.
        """

    def save(self, path: str | os.PathLike) -> None:
        """Writes what `load` of its config needs to make it again, as one file."""


@runtime_checkable
class PosteriorCodec(ImageCodec, Protocol):
    """A codec whose latents are drawn again whenever they are read."""

    def encode_posterior(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[B, H, W, 3] uint8 -> mean and log-variance, each [B, h, w, C] float32.

        Of the scaled latents.

        Raises:
          UserError: not pictures of that kind.
        """


@runtime_checkable
class ImageCodecConfig(Protocol):
    """A frozen dataclass: what the config section `codec` holds beside `kind`."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The (h, w, C) of the latents of pictures of `height` by `width` pixels.

        Raises:
          UserError: the codec cannot encode pictures of that size.
        """

    def make(self, training_images: Sequence[np.ndarray]) -> ImageCodec:
        """Makes the codec; packages that it alone needs are imported here.

        Args:
          training_images: the pictures of the training split, each [H, W, 3] uint8 and
            drawn when asked for. To fit the codec to; one that comes with weights
            leaves them alone.

        Raises:
          UserError: the codec cannot be fitted to these pictures.
          MissingPackageError: a package or the weights are not installed.
        """

    @staticmethod
    def load(path: str | os.PathLike, folders: Sequence[str] = ()) -> ImageCodec:
        """Reads what `ImageCodec.save` wrote.

        Args:
          path: of the file.
          folders: where weights that the file only names may be now; they are tried
            before the path in the file.

        Raises:
          FileNotFoundError: no such file, or no weights.
          UserError: not a file of this kind, or the weights found are others.
        """
