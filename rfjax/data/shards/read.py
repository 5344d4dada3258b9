# SPDX-License-Identifier: Apache-2.0
"""Reading a data set: records, codec and empty caption, verified as they are read.

TensorFlow is never imported.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from rfjax.data.joined import JoinedRecords
from rfjax.data.manifest import Manifest, StoredFile
from rfjax.data.shards.check import check_shards, verified
from rfjax.data.shards.contents import problems_of_text
from rfjax.data.shards.features import check_features
from rfjax.data.shards.layout import (
    CODEC_FILE,
    EMPTY_CAPTION_FILE,
    make_features,
    read_manifest,
)
from rfjax.data.shards.records import RecordSource
from rfjax.encoders.images import IMAGE_CODECS, ImageCodec
from rfjax.errors import UserError


def open_split(
    root: str | os.PathLike, split: str, *, full_check: bool = False
) -> RecordSource | JoinedRecords:
    """Opens one split for random access.

    Args:
      root: the data folder.
      split: "train" or "validation".
      full_check: passed on to `check_shards`; sizes only by default.

    Returns:
      A `tfds.data_source` in a faster decoder: `source[i]` is a dictionary of read-only
      NumPy arrays, and bytes for texts. Those of one bucket follow those of another, in
      the order of the manifest.

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
    check_features(root, manifest)
    return open_shards(
        root, manifest, [file for file in manifest.files if file.split == split]
    )


def open_shards(
    root: str | os.PathLike, manifest: Manifest, files: Sequence[StoredFile]
) -> RecordSource | JoinedRecords:
    """Opens shards that were checked already; a file is opened when it is read.

    Args:
      root: the data folder.
      manifest: of the data set.
      files: one or more of its shards.

    Returns:
      Their records: buckets in the order of the manifest, files in order within.
    """
    buckets = [
        _open_bucket(root, manifest, shape, own)
        for shape in manifest.latent.shapes
        if (own := [f for f in files if f.bucket in (None, shape[:2])])
    ]
    return buckets[0] if len(buckets) == 1 else JoinedRecords(buckets)


def _open_bucket(
    root: str | os.PathLike,
    manifest: Manifest,
    shape: tuple[int, int, int],
    files: Sequence[StoredFile],
) -> RecordSource:
    """Opens shards whose latents are of one shape."""
    shards = [(str(Path(root) / file.path), file.num_records) for file in files]
    return RecordSource(
        ArrayRecordDataSource([f"{path}[0:{count}]" for path, count in shards]),
        tensors={
            name: (feature.shape, feature.np_dtype)
            for name, feature in make_features(manifest, shape).items()
            if not isinstance(feature, tfds.features.Text)
        },
        shards=shards,
    )


def read_codec(root: str | os.PathLike, *, folders: Sequence[str] = ()) -> ImageCodec:
    """Returns the codec whose `decode` turns this data set's latents into pictures.

    Args:
      root: the data folder.
      folders: where its weights may be now, if it has some of its own.

    Raises:
      MissingFileError: data set, codec or weights are missing.
      UserError: the codec is unknown or damaged, or its weights are others.
    """
    kind = read_manifest(root).latent.codec
    if kind not in IMAGE_CODECS:
        raise UserError(
            f"latent.codec of {root} must be one of {sorted(IMAGE_CODECS)} to make "
            f"pictures, got {kind!r}."
        )
    return IMAGE_CODECS[kind].load(verified(root, CODEC_FILE), folders)


def read_empty_caption(root: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the text features of the empty caption: bfloat16 arrays, int32 length.

    Raises:
      MissingFileError: data set or file is missing.
      UserError: it is damaged, or not of this data set's encoders.
    """
    path = verified(root, EMPTY_CAPTION_FILE)
    remedy = "make the data set again with `rfjax encode`."
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            features = {
                name: value.astype(ml_dtypes.bfloat16)
                if value.dtype == np.float32
                else value
                for name, value in arrays.items()
            }
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from error
    problems = problems_of_text(features, read_manifest(root), padded=True)
    if problems:
        raise UserError(f"{path} is not an empty caption: {problems[0]} {remedy}")
    return features
