# SPDX-License-Identifier: Apache-2.0
"""A linear picture codec: principal components of small patches, in NumPy alone.

It stands where a variational autoencoder stands for photographs, but needs no network:
fitted in a second, it gives latents of many channels that decode at once. Each patch of
patch_size by patch_size pixels becomes one latent position:

    latents = ((patch - mean) @ basis) * gain
    patch   = (latents / gain) @ basis.T + mean

Channel c has standard deviation s_c before the gain, and gain_c is proportional to
s_c ** -whitening, with the factor that makes the variance of all latents 1 together.
With whitening = 0 distances between latents are distances between pictures, but fine
detail sits in channels so weak that the sampler's last steps leave them noisy. With
whitening = 1 every channel counts the same, and capacity goes into detail that hardly
shows. The default lies between.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np

from rfjax import whole_files
from rfjax.encoders.images import pixels
from rfjax.errors import MissingFileError, UserError
from rfjax.value_types import Bounds, Fraction, InputPath, PositiveInt, check_fields


@dataclasses.dataclass(frozen=True)
class PatchPCAConfig:
    """Fields of an image codec of kind `patch_pca`.

    Attributes:
      patch_size: side of a patch in pixels; divides the picture.
      channels: number of components kept, at most patch_size * patch_size * 3.
      whitening: 0 keeps the components' own spread, 1 makes all equally strong.
      num_images: training pictures that the codec is fitted to, at most; spread evenly
        over the split.
      path: codec.npz of another data set, whose codec is taken as it is; so one model
        reads both. One is fitted when None.
    """

    patch_size: Annotated[int, Bounds(1, 64)] = 4
    channels: PositiveInt = 16
    whitening: Fraction = 0.5
    num_images: PositiveInt = 2048
    path: InputPath | None = None

    def __post_init__(self):
        check_fields(self, section="codec")
        size = self.patch_size * self.patch_size * 3
        if self.channels > size:
            raise UserError(
                "codec.channels must be at most patch_size * patch_size * 3 = "
                f"{size}, got {self.channels}; keep fewer channels or use larger "
                "patches."
            )

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The (h, w, C) of the latents of pictures of `height` by `width` pixels.

        Raises:
          UserError: the patches do not fill such a picture.
        """
        if height % self.patch_size or width % self.patch_size:
            raise UserError(
                f"codec.patch_size {self.patch_size} must divide the sides of pictures "
                f"(source.image_size), {height} x {width}; choose e.g. 4 and 32."
            )
        return height // self.patch_size, width // self.patch_size, self.channels

    def make(self, training_images: Sequence[np.ndarray]) -> PatchPCA:
        """Fits a codec to pictures, so that their latents have mean 0 and variance 1.

        Args:
          training_images: each [H, W, 3] uint8, or float in [-1, 1]; of any sizes that
            the patches fill.

        Raises:
          MissingFileError: `path` is not there.
          UserError: no such pictures, or too similar to yield that many components; or
            the codec of `path` is of another size.
        """
        if self.path is not None:
            return self._taken_over(self.path)
        num_images = min(len(training_images), self.num_images)
        indices = [len(training_images) * i // num_images for i in range(num_images)]
        mean, covariance = _moments(
            (training_images[index] for index in indices), self.patch_size
        )
        # P by P, however many pictures there are.
        variances, vectors = np.linalg.eigh(covariance)
        variances = variances[::-1][: self.channels]
        basis = vectors[:, ::-1][:, : self.channels]
        if variances[-1] <= 1e-9 * variances[0] or variances[0] <= 0.0:
            raise UserError(
                f"the {num_images} images have fewer than {self.channels} independent "
                "patch components; fit on more varied images or keep fewer channels."
            )
        # A component's sign is arbitrary: make its largest entry positive.
        largest = basis[np.abs(basis).argmax(axis=0), np.arange(self.channels)]
        basis = basis * np.sign(largest)
        gain = variances ** (-0.5 * self.whitening)
        gain /= np.sqrt(np.mean(variances * gain**2))
        return PatchPCA(
            patch_size=self.patch_size,
            mean=mean.astype(np.float32),
            basis=basis.astype(np.float32),
            gain=gain.astype(np.float32),
        )

    def _taken_over(self, path: str) -> PatchPCA:
        """The codec of another data set."""
        if not Path(path).is_file():
            raise MissingFileError(
                f"codec.path must be the codec.npz of a data set, got {path}, which is "
                "no file; name one, as data/emoji/codec.npz."
            )
        codec = self.load(path)
        if (codec.patch_size, codec.gain.size) != (self.patch_size, self.channels):
            raise UserError(
                f"codec.path must hold a codec of patch_size {self.patch_size} and "
                f"channels {self.channels}, got {codec.patch_size} and "
                f"{codec.gain.size} in {path}; set the fields to these."
            )
        return codec

    @staticmethod
    def load(path: str | os.PathLike, folders: Sequence[str] = ()) -> PatchPCA:
        """Reads what `PatchPCA.save` wrote; `folders` are not needed.

        Raises:
          FileNotFoundError: no such file.
          UserError: not such a file.
        """
        try:
            with Path(path).open("rb") as file, np.load(file) as arrays:
                fields = dict(arrays)
            codec = PatchPCA(**fields | {"patch_size": int(fields["patch_size"])})
            codec.check()
            return codec
        except (
            KeyError,
            TypeError,
            ValueError,
            EOFError,
            zipfile.BadZipFile,
        ) as error:
            raise UserError(
                f"{path} is not a patch codec ({error}); make the data set again with "
                "`rfjax encode`."
            ) from error


DECODING = """\
codec = np.load("FOLDER/codec.npz")
size = int(codec["patch_size"])
patches = (latents / codec["gain"]) @ codec["basis"].T + codec["mean"]
batch, rows, columns, _ = patches.shape
pixels = patches.reshape(batch, rows, columns, size, size, 3)
pixels = pixels.transpose(0, 1, 3, 2, 4, 5)
pixels = pixels.reshape(batch, rows * size, columns * size, 3)
images = np.clip(np.rint((pixels + 1) * 127.5), 0, 255).astype(np.uint8)"""


@dataclasses.dataclass(frozen=True)
class PatchPCA:
    """A fitted codec. Arrays are float32; P = patch_size * patch_size * 3.

    Attributes:
      patch_size: side of a patch in pixels.
      mean: [P] average patch, pixels in [-1, 1].
      basis: [P, C] orthonormal columns, strongest component first.
      gain: [C] what each component is multiplied with.
      has_variance: see `ImageCodec`, as the next two.
      weights: it has none but those of the file.
      decoding: Python code.
    """

    has_variance: ClassVar[bool] = False
    weights: ClassVar[str] = ""
    decoding: ClassVar[str] = DECODING

    patch_size: int
    mean: np.ndarray
    basis: np.ndarray
    gain: np.ndarray

    def check(self) -> None:
        """Raises ValueError unless the arrays fit together and are finite."""
        size, channels = self.patch_size**2 * 3, np.size(self.gain)
        shapes = {"mean": (size,), "basis": (size, channels), "gain": (channels,)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{name} must be {shape} and finite")
        if not self.gain.all():
            raise ValueError("gain must not be 0")

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Encodes pictures.

        Args:
          images: [B, H, W, 3] uint8, or float in [-1, 1]; H and W divisible by
            `patch_size`.

        Returns:
          [B, H / patch_size, W / patch_size, C] float32 latents.

        Raises:
          UserError: not pictures of that kind.
        """
        patches = _to_patches(pixels.from_bytes(images), self.patch_size)
        return ((patches - self.mean) @ self.basis) * self.gain

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decodes [B, h, w, C] latents to [B, h * patch, w * patch, 3] uint8."""
        latents = np.asarray(latents, np.float32)
        if latents.ndim != 4 or latents.shape[-1] != self.gain.size:
            raise UserError(
                f"latents must be [B, h, w, {self.gain.size}] for this codec, got "
                f"{latents.shape}; use the codec of the data set they belong to."
            )
        patches = (latents / self.gain) @ self.basis.T + self.mean
        batch, rows, columns, _ = patches.shape
        size = self.patch_size
        blocks = patches.reshape(batch, rows, columns, size, size, 3)
        blocks = blocks.transpose(0, 1, 3, 2, 4, 5)
        return pixels.to_bytes(blocks.reshape(batch, rows * size, columns * size, 3))

    def save(self, path: str | os.PathLike) -> None:
        """Writes an .npz file; replaces an existing one in one step."""
        with whole_files.replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, **dataclasses.asdict(self))


def _moments(images: Iterable[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [P] and covariance [P, P] of all patches of pictures, in one pass.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances" (1979), for vectors.
    """
    dims = size * size * 3
    count, mean, scatter = 0, np.zeros(dims), np.zeros((dims, dims))
    for image in images:
        patches = _to_patches(pixels.from_bytes(np.asarray(image)[None]), size)
        patches = patches.reshape(-1, dims).astype(np.float64)
        own_mean = patches.mean(axis=0)
        centred, step = patches - own_mean, own_mean - mean
        total = count + len(patches)
        scatter += centred.T @ centred
        scatter += np.outer(step, step) * (count * len(patches) / total)
        mean += step * (len(patches) / total)
        count = total
    return mean, scatter / count


def _to_patches(images: np.ndarray, size: int) -> np.ndarray:
    """[B, H, W, 3] -> [B, h, w, size * size * 3], each flattened (row, column, 3)."""
    batch, height, width, _ = images.shape
    if height % size or width % size:
        raise UserError(
            f"patch_size {size} must divide the image size {height} x {width}; choose "
            "another patch or image size."
        )
    blocks = images.reshape(batch, height // size, size, width // size, size, 3)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, height // size, width // size, size * size * 3)
