# SPDX-License-Identifier: Apache-2.0
"""The data set of MLPerf's FLUX.1 benchmark: encodings without pictures or captions.

MLCommons publishes Conceptual 12M and COCO as FLUX encodes them at 256 pixels:

    PATH/cc12m_preprocessed/*.arrow       training rows
    PATH/coco_preprocessed/*.arrow        validation rows
    PATH/empty_encodings/t5_empty.npy     T5 states of the empty caption
    PATH/empty_encodings/clip_empty.npy   pooled CLIP vector of the empty caption

Each row holds four arrays as bytes of .npy files, bfloat16 as the uint16 of its bits:
`t5_encodings` [256, 4096], `clip_encodings` [768], and the autoencoder's posterior,
`mean` and `logvar` [16, 32, 32], before scale and shift. Validation rows also have a
`timestep` k of 0 to 7: the benchmark measures their loss at t = k / 8. No length and no
mask is stored: the states of pads count. Nothing here is encoded again:

    latents      = (mean - shift) * scale
    log_variance = logvar + 2 ln(scale)

Source: github.com/mlcommons/training, text_to_image/README.md.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rfjax.data.manifest import EncoderSpec, LatentSpec
from rfjax.data.sources.arrow_streams import ArrowStreams
from rfjax.data.sources.base import Entry, ImageSize
from rfjax.data.sources.pictures import BrokenPicture
from rfjax.encoders.images import autoencoder_kl
from rfjax.errors import MissingFileError, UserError
from rfjax.value_types import (
    InputPath,
    PositiveFloat,
    Real,
    StoredPath,
    Text,
    check_fields,
)

LICENCE = (
    "Encodings of Conceptual 12M (training) and COCO 2014 (validation), published by "
    "MLCommons for MLPerf Training; pictures and captions belong to their owners."
)
NUM_TIMESTEPS = 8
PRECOMPUTED = "precomputed"  # kind of encoders whose captions are not known

# Column -> number of dims of its array.
_ARRAYS = {"t5_encodings": 2, "clip_encodings": 1, "mean": 3, "logvar": 3}
_BINARY = "binary|large_binary"
_KEY, _TIMESTEP = "__key__", "timestep"
_EXPONENT = np.uint16(0x7F80)  # of a bfloat16: all ones in NaN and infinity

_REMEDY = "download it again."


@dataclasses.dataclass(frozen=True)
class MLPerfFluxConfig:
    """Fields of a source of kind `mlperf_flux`.

    Attributes:
      path: folder of the download.
      train: folder of the training rows in `path`.
      validation: folder of the validation rows in `path`.
      empty_encodings: folder of the empty caption in `path`.
      scale: `scaling_factor` of the autoencoder, FLUX's own by default.
      shift: its `shift_factor`.
      autoencoder: pipeline whose autoencoder decodes samples: a folder, or its name on
        the hub. Nothing else needs it.
      image_size: pixels of a side of the pictures that were encoded.
    """

    path: InputPath
    train: Text = "cc12m_preprocessed"
    validation: Text = "coco_preprocessed"
    empty_encodings: Text = "empty_encodings"
    scale: PositiveFloat = 0.3611
    shift: Real = 0.1159
    autoencoder: StoredPath = "black-forest-labs/FLUX.1-schnell"
    image_size: ImageSize = 256

    def __post_init__(self):
        check_fields(self, section="source")

    def make(self) -> MLPerfFlux:
        """Opens the files.

        Raises:
          MissingFileError: a folder or a file is not there.
          MissingPackageError: pyarrow is not installed.
          UserError: a file is cut short, or not of this layout.
        """
        return MLPerfFlux(self)


class MLPerfFlux:
    """The rows of both splits, training first, as features of records.

    Attributes:
      licence: see `EncodedSource`.
      caption_kinds: one, whose texts were not published.
      latent_spec: as the first row has it.
      encoder_specs: T5 with its states, CLIP with its pooled vector alone.
    """

    licence = LICENCE
    caption_kinds = ("original",)

    def __init__(self, config: MLPerfFluxConfig):
        self._config = config
        root = Path(config.path)
        columns = dict.fromkeys(_ARRAYS, _BINARY)
        self._splits = {
            split: ArrowStreams(
                root / getattr(config, split), columns=columns, field=f"source.{split}"
            )
            for split in ("train", "validation")
        }
        for split, rows in self._splits.items():
            if not len(rows):
                raise UserError(
                    f"source.{split} must hold at least one row, got "
                    f"{root / getattr(config, split)} with none; {_REMEDY}"
                )
        first = self._arrays(0)
        self._shapes = {name: array.shape for name, array in first.items()}
        channels, height, width = self._shapes["mean"]
        self.latent_spec = LatentSpec(
            shape=(height, width, channels),
            codec="autoencoder_kl",
            codec_scale=config.scale,
            codec_shift=config.shift,
            has_variance=True,
        )
        self.encoder_specs = _encoder_specs(self._shapes)
        self._empty = {
            name: self._empty_array(f"{name}_empty.npy", f"{name}_encodings")
            for name in ("t5", "clip")
        }

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._splits.values())

    def entry(self, index: int) -> Entry:
        """A row without its arrays; the `timestep` of one is in its annotation."""
        split, rows, row = self._place(index)
        annotation = {}
        if _KEY in rows.columns:
            annotation["id"] = rows.value(row, _KEY)
        if _TIMESTEP in rows.columns:
            annotation[_TIMESTEP] = rows.value(row, _TIMESTEP)
        return Entry(
            key=self._name_of(index),
            captions=("",),
            split=split,
            annotation=annotation,
        )

    def features(self, index: int) -> dict[str, np.ndarray]:
        """Latents, log variance and text states of a row, as a record holds them.

        Raises:
          BrokenPicture: an array is not of the data set's shape and dtype or holds NaN
            or infinity, the timestep is none of the benchmark's, or the file differs
            from its MD5 sum.
        """
        _, rows, row = self._place(index)
        try:
            rows.check(row)
        except UserError as error:
            raise BrokenPicture(str(error)) from error
        self._check_timestep(index)
        arrays = self._arrays(index)
        self._check_arrays(index, arrays)
        config = self._config
        mean, logvar = (
            np.moveaxis(arrays[name].astype(np.float32), 0, -1)
            for name in ("mean", "logvar")
        )
        log_variance = logvar + np.float32(2.0 * math.log(config.scale))
        latents = (mean - np.float32(config.shift)) * np.float32(config.scale)
        return {
            "latents": latents.astype(ml_dtypes.bfloat16),
            "log_variance": log_variance.astype(ml_dtypes.bfloat16),
            **self._text(arrays["t5_encodings"], arrays["clip_encodings"]),
        }

    def empty_caption(self) -> dict[str, np.ndarray]:
        """The text features of the empty caption, for dropout and guidance."""
        return self._text(self._empty["t5"], self._empty["clip"])

    def save_codec(self, path: str | os.PathLike) -> None:
        """Writes the codec.npz that names FLUX's autoencoder; it need not be there."""
        autoencoder_kl.save_reference(
            path,
            autoencoder_kl.AutoencoderKLConfig(
                path=self._config.autoencoder, subfolder="vae"
            ),
            scaling_factor=self._config.scale,
            shift_factor=self._config.shift,
        )

    def _check_timestep(self, index: int) -> None:
        _, rows, row = self._place(index)
        if _TIMESTEP not in rows.columns:
            return
        timestep = rows.value(row, _TIMESTEP)
        if type(timestep) is not int or not 0 <= timestep < NUM_TIMESTEPS:
            raise BrokenPicture(
                f"{_TIMESTEP} of {self._name_of(index)} must be a whole number between "
                f"0 and {NUM_TIMESTEPS - 1}, got {timestep!r}; {_REMEDY}"
            )

    def _check_arrays(self, index: int, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            where = f"{name} of {self._name_of(index)}"
            if array.shape != self._shapes[name]:
                raise BrokenPicture(
                    f"{where} must be {list(self._shapes[name])} as in the first row, "
                    f"got {list(array.shape)}; {_REMEDY}"
                )
            bits = array.view(np.uint16)
            if num_bad := np.count_nonzero((bits & _EXPONENT) == _EXPONENT):
                raise BrokenPicture(
                    f"{where} must be finite, got {num_bad:,} values that are NaN or "
                    f"infinite; {_REMEDY}"
                )

    def _text(self, states: np.ndarray, pooled: np.ndarray) -> dict[str, np.ndarray]:
        t5, clip = self.encoder_specs
        return {
            f"{t5.prefix}context": states,
            f"{t5.prefix}context_length": np.int32(t5.length),
            f"{clip.prefix}pooled": pooled,
        }

    def _place(self, index: int) -> tuple[str, ArrowStreams, int]:
        """The split of a row, the files of that, and the row's number in them."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, split = index, "train"
        if row >= len(self._splits[split]):
            row, split = row - len(self._splits[split]), "validation"
        return split, self._splits[split], row

    def _name_of(self, index: int) -> str:
        split, rows, row = self._place(index)
        return f"{getattr(self._config, split)}/{rows.name_of(row)}"

    def _arrays(self, index: int) -> dict[str, np.ndarray]:
        """The four arrays of a row, bfloat16."""
        _, rows, row = self._place(index)
        return {
            name: _read_array(
                rows.value(row, name), rank, where=f"{name} of {self._name_of(index)}"
            )
            for name, rank in _ARRAYS.items()
        }

    def _empty_array(self, file: str, column: str) -> np.ndarray:
        """The encoding of the empty caption, bfloat16, of the shape of a column."""
        path = Path(self._config.path) / self._config.empty_encodings / file
        try:
            array = np.load(path, allow_pickle=False)
        except FileNotFoundError as error:
            raise MissingFileError(
                f"source.empty_encodings must hold {file}, got {path.parent} without; "
                f"{_REMEDY}"
            ) from error
        except (ValueError, EOFError, OSError) as error:
            raise UserError(
                f"{path} must be a .npy file, got another ({error}); {_REMEDY}"
            ) from error
        array = _without_batch(array, _ARRAYS[column])
        if array.dtype == np.uint16:
            array = array.view(ml_dtypes.bfloat16)
        finite = array.dtype.kind in "fV" and np.isfinite(array.astype(np.float32))
        if array.shape != self._shapes[column] or not np.all(finite):
            raise UserError(
                f"{path} must be {list(self._shapes[column])} and finite, as {column} "
                f"of the rows, got {list(array.shape)} {array.dtype}; {_REMEDY}"
            )
        return array.astype(ml_dtypes.bfloat16)


def _encoder_specs(shapes: Mapping[str, tuple[int, ...]]) -> tuple[EncoderSpec, ...]:
    length, context_dim = shapes["t5_encodings"]
    (pooled_dim,) = shapes["clip_encodings"]
    t5 = EncoderSpec(
        name="t5",
        kind=PRECOMPUTED,
        context_dim=context_dim,
        length=length,
        pooled_dim=0,
        prefix="t5_",
        mask=False,
    )
    clip = EncoderSpec(
        name="clip_l",
        kind=PRECOMPUTED,
        context_dim=0,
        length=77,
        pooled_dim=pooled_dim,
        prefix="clip_l_",
        mask=False,
    )
    return t5, clip


def _read_array(value: Any, rank: int, *, where: str) -> np.ndarray:
    """A bfloat16 array from the bytes of a .npy file that holds its bits.

    Raises:
      BrokenPicture: it is anything else.
    """
    try:
        array = np.load(io.BytesIO(value or b""), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BrokenPicture(
            f"{where} must be the bytes of a .npy file, got {len(value or b''):,} "
            f"others ({error}); {_REMEDY}"
        ) from error
    array = _without_batch(array, rank)
    if array.dtype != np.uint16 or array.ndim != rank:
        raise BrokenPicture(
            f"{where} must be uint16 of {rank} dims, the bits of bfloat16, got "
            f"{array.dtype} {list(array.shape)}; {_REMEDY}"
        )
    return np.ascontiguousarray(array).view(ml_dtypes.bfloat16)


def _without_batch(array: np.ndarray, rank: int) -> np.ndarray:
    """The array without a first dim of 1 that is one too many."""
    return array[0] if array.ndim == rank + 1 and len(array) == 1 else array
