# SPDX-License-Identifier: Apache-2.0
"""Reading a data set: records, codec and empty caption, verified as they are read.

TensorFlow is never imported.
"""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds

from rfjax.data.manifest import MANIFEST_FILE
from rfjax.data.shards.check import check_shards, verified
from rfjax.data.shards.layout import (
    CODEC_FILE,
    EMPTY_CAPTION_FILE,
    make_features,
    read_manifest,
    tfds_folder,
)
from rfjax.data.shards.records import RecordSource
from rfjax.encoders.images import IMAGE_CODECS, ImageCodec
from rfjax.errors import UserError


def open_split(
    root: str | os.PathLike, split: str, *, full_check: bool = False
) -> RecordSource:
    """Opens one split for random access.

    Args:
      root: the data folder.
      split: "train" or "validation".
      full_check: passed on to `check_shards`; sizes only by default.

    Returns:
      A `tfds.data_source` in a faster decoder: `source[i]` is a dictionary of read-only
      NumPy arrays, and bytes for texts.

    Raises:
      MissingFileError: something is missing.
      UserError: no such split, damaged files, or records of other shapes than the
        manifest says.
    """
    manifest = check_shards(root, full=full_check)
    if split not in manifest.splits:
        raise UserError(
            f"data set {root} has no split {split!r}; choose one of "
            f"{sorted(manifest.splits)}."
        )
    builder = tfds.builder_from_directory(tfds_folder(root, manifest))
    expected = make_features(manifest)
    stored = builder.info.features
    for name, feature in expected.items():
        found = (stored[name].shape, stored[name].np_dtype) if name in stored else None
        if found != (feature.shape, feature.np_dtype):
            raise UserError(
                f"feature {name} of {root} must be {feature.shape} "
                f"{np.dtype(feature.np_dtype)} as {MANIFEST_FILE} says, but the "
                f"records have {found}; make the data set again with "
                "`rfjax encode`."
            )
    raw = builder.as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    return RecordSource(
        raw,
        tensors={
            name: (feature.shape, feature.np_dtype)
            for name, feature in expected.items()
            if not isinstance(feature, tfds.features.Text)
        },
        shards=[
            (str(Path(root) / file.path), file.num_records)
            for file in manifest.files
            if file.split == split
        ],
    )


def read_codec(root: str | os.PathLike) -> ImageCodec:
    """Returns the codec whose `decode` turns this data set's latents into pictures.

    Raises:
      MissingFileError: data set or codec is missing.
      UserError: the codec is unknown or damaged.
    """
    kind = read_manifest(root).latent.codec
    if kind not in IMAGE_CODECS:
        raise UserError(
            f"latent.codec of {root} must be one of {sorted(IMAGE_CODECS)} to make "
            f"pictures, got {kind!r}."
        )
    return IMAGE_CODECS[kind].load(verified(root, CODEC_FILE))


def read_empty_caption(root: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the text features of the empty caption: bfloat16 arrays, int32 length.

    Raises:
      MissingFileError: data set or file is missing.
      UserError: it is damaged.
    """
    with np.load(verified(root, EMPTY_CAPTION_FILE)) as arrays:
        return {
            name: value.astype(ml_dtypes.bfloat16)
            if value.dtype == np.float32
            else value
            for name, value in arrays.items()
        }
