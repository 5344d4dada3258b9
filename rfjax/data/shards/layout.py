# SPDX-License-Identifier: Apache-2.0
"""What lies where in the folder of a data set, and what is in a record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds

from rfjax.data.manifest import MANIFEST_FILE, EncoderSpec, Manifest
from rfjax.errors import MissingFileError

CODEC_FILE = "codec.npz"
EMPTY_CAPTION_FILE = "empty_caption.npz"
TFDS_VERSION = "1.0.0"


def read_manifest(root: str | os.PathLike) -> Manifest:
    """Reads ROOT/rfjax.json.

    Raises:
      MissingFileError: the folder or the manifest is missing.
      UserError: the manifest cannot be read by this version.
    """
    root = Path(root)
    if not root.is_dir():
        raise MissingFileError(
            f"data folder {root} does not exist; name the folder where it is now, or "
            f"make it with `rfjax encode --config=configs/data/NAME.py --out={root}`."
        )
    path = root / MANIFEST_FILE
    if not path.is_file():
        state = "is empty" if not any(root.iterdir()) else f"holds no {MANIFEST_FILE}"
        raise MissingFileError(
            f"data folder {root} {state}, so it is not a data set; name another, "
            "or make one with `rfjax encode --config=configs/data/NAME.py --out=DIR`."
        )
    return Manifest.from_json(path.read_bytes(), path=path)


def make_features(
    manifest: Manifest, shape: tuple[int, int, int] | None = None
) -> tfds.features.FeaturesDict:
    """Returns the TFDS features of one record.

    Args:
      manifest: of the data set.
      shape: (H, W, C) of the latents of its bucket; of square ones if None.
    """
    shape = manifest.latent.shape if shape is None else shape
    features = {
        "latents": _tensor(shape),
        "caption": tfds.features.Text(),
        # JSON: what is known about the picture, e.g. the objects in a scene.
        "annotation": tfds.features.Text(),
    }
    if manifest.latent.has_variance:
        features["log_variance"] = _tensor(shape)
    for caption, kind in enumerate(manifest.text.captions or ("caption",)):
        if caption:
            features[kind] = tfds.features.Text()
        for encoder in manifest.text.encoders:
            features |= _text_features(manifest, caption, encoder)
    return tfds.features.FeaturesDict(features)


def _text_features(
    manifest: Manifest, caption: int, encoder: EncoderSpec
) -> dict[str, tfds.features.Tensor]:
    """What a record holds of one of its captions as one encoder gives it."""
    # Of further captions a record may have none, and then stores no token either.
    is_full = manifest.text.layout == "padded" and caption == 0
    features = {}
    if encoder.context_dim:
        length = encoder.length if is_full else None
        features |= {
            "context": _tensor((length, encoder.context_dim)),
            "context_length": _tensor((), np.int32),
        }
    if encoder.pooled_dim:
        features["pooled"] = _tensor((encoder.pooled_dim,))
    return {
        manifest.feature(caption, encoder, part): feature
        for part, feature in features.items()
    }


def _tensor(shape: tuple, dtype: Any = ml_dtypes.bfloat16) -> tfds.features.Tensor:
    """A feature that is stored as raw bytes; any other encoding widens bfloat16."""
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")


def tfds_folder(
    root: str | os.PathLike, manifest: Manifest, shape: tuple[int, ...] | None = None
) -> Path:
    """Returns a folder that `tfds.builder_from_directory` takes.

    Args:
      root: the data folder.
      manifest: of the data set.
      shape: (H, W, C) of the latents of a bucket; not needed if there is but one.
    """
    folder = Path(root) / "tfds" / manifest.name
    if manifest.latent.buckets:
        height, width, _ = manifest.latent.shape if shape is None else shape
        folder /= f"{height}x{width}"
    return folder / TFDS_VERSION
