# SPDX-License-Identifier: Apache-2.0
"""What lies where in the folder of a data set, and what is in a record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds

from rfjax.data.manifest import MANIFEST_FILE, Manifest
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


def make_features(manifest: Manifest) -> tfds.features.FeaturesDict:
    """Returns the TFDS features of one record, in the manifest's shapes."""

    def tensor(shape: tuple, dtype: Any = ml_dtypes.bfloat16) -> tfds.features.Tensor:
        """A feature that is stored as raw bytes."""
        # Any other encoding widens bfloat16 or fails to write it.
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    features = {
        "latents": tensor(manifest.latent.shape),
        "caption": tfds.features.Text(),
        # JSON: what is known about the picture, e.g. the objects in a scene.
        "annotation": tfds.features.Text(),
    }
    for encoder in manifest.text.encoders:
        length = encoder.length if manifest.text.layout == "padded" else None
        features |= {
            f"{encoder.prefix}context": tensor((length, encoder.context_dim)),
            f"{encoder.prefix}context_length": tensor((), np.int32),
            f"{encoder.prefix}pooled": tensor((encoder.pooled_dim,)),
        }
    return tfds.features.FeaturesDict(features)


def tfds_folder(root: str | os.PathLike, manifest: Manifest) -> Path:
    """Returns the folder that `tfds.builder_from_directory` takes."""
    return Path(root) / "tfds" / manifest.name / TFDS_VERSION
