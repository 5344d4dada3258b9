# SPDX-License-Identifier: Apache-2.0
"""Writing a data set: records, TFDS metadata, codec, empty caption and manifest."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from rfjax import whole_files
from rfjax.data.manifest import MANIFEST_FILE, Manifest, StoredFile
from rfjax.data.shards.check import sha256_of
from rfjax.data.shards.layout import (
    CODEC_FILE,
    EMPTY_CAPTION_FILE,
    make_features,
    tfds_folder,
)
from rfjax.errors import UserError


def write_dataset(
    root: str | os.PathLike,
    *,
    manifest: Manifest,
    examples: Mapping[str, Iterable[Mapping[str, Any]]],
    empty_caption: Mapping[str, np.ndarray],
    save_codec: Callable[[Path], None],
    records_per_shard: int = 1024,
) -> Manifest:
    """Writes a whole data set: into a temporary folder first, renamed when complete.

    Args:
      root: target; must be new or empty.
      manifest: `files` is filled in here; `splits` says how many examples to expect.
      examples: split -> records with the keys of `make_features`.
      empty_caption: the text features of the empty caption, padded to full length.
      save_codec: called with the path of codec.npz.
      records_per_shard: at most this many records go into one file.

    Returns:
      The manifest as written.

    Raises:
      UserError: the target is not empty, or a split is empty or of another length.
    """
    whole_files.check_free(root, field="out")
    for split, num_records in manifest.splits.items():
        if num_records < 1:
            raise UserError(
                f"split {split} of data set {manifest.name} must hold at least 1 "
                f"example, got {num_records}; ask for more examples."
            )
    with whole_files.new_folder(root, num_bytes=_num_bytes(manifest)) as partial:
        folder = tfds_folder(partial, manifest)
        folder.mkdir(parents=True)
        features = make_features(manifest)
        shards = []
        for split, num_records in manifest.splits.items():
            shards += _write_split(
                partial,
                folder,
                name=manifest.name,
                split=split,
                features=features,
                examples=examples[split],
                num_records=num_records,
                records_per_shard=records_per_shard,
            )
        _write_tfds_metadata(folder, manifest, features, shards)
        save_codec(partial / CODEC_FILE)
        # npz cannot hold bfloat16; float32 holds each bfloat16 value exactly.
        np.savez(
            partial / EMPTY_CAPTION_FILE,
            **{
                name: np.asarray(value, ml_dtypes.bfloat16).astype(np.float32)
                if not name.endswith("context_length")
                else np.asarray(value, np.int32)
                for name, value in empty_caption.items()
            },
        )
        others = [
            path
            for path in sorted(partial.rglob("*"))
            if path.is_file() and ".array_record-" not in path.name
        ]
        files = tuple(shards) + tuple(_describe(partial, path) for path in others)
        manifest = dataclasses.replace(manifest, files=files)
        (partial / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _num_bytes(manifest: Manifest) -> int:
    """About what a data set takes: its tensors, those of full captions if they vary."""
    num_values = math.prod(manifest.latent.shape)
    for encoder in manifest.text.encoders:
        num_values += encoder.length * encoder.context_dim + encoder.pooled_dim
    itemsize = np.dtype(ml_dtypes.bfloat16).itemsize
    return sum(manifest.splits.values()) * num_values * itemsize


def _describe(
    root: Path, path: Path, *, split: str = "", num_records: int = 0
) -> StoredFile:
    return StoredFile(
        path=path.relative_to(root).as_posix(),
        num_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        split=split,
        num_records=num_records,
    )


def _write_split(
    root: Path,
    folder: Path,
    *,
    name: str,
    split: str,
    features: tfds.features.FeaturesDict,
    examples: Iterable[Mapping[str, Any]],
    num_records: int,
    records_per_shard: int,
) -> list[StoredFile]:
    """Writes one split's shards and returns their descriptions."""
    num_shards = math.ceil(num_records / records_per_shard)
    # Even shards: sizes differ by one record at most.
    bounds = [num_records * i // num_shards for i in range(num_shards + 1)]
    examples = iter(examples)
    serializer = ExampleSerializer(features.get_serialized_info())
    shards = []
    for shard in range(num_shards):
        path = folder / f"{name}-{split}.array_record-{shard:05d}-of-{num_shards:05d}"
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        count = bounds[shard + 1] - bounds[shard]
        try:
            for _ in range(count):
                try:
                    example = next(examples)
                except StopIteration:
                    raise UserError(
                        f"split {split} was announced with {num_records} examples but "
                        "its source ended early; correct manifest.splits."
                    ) from None
                record = serializer.get_tf_example(features.encode_example(example))
                # Otherwise each process writes the features in an order of its own, and
                # the same data would have other checksums.
                writer.write(record.SerializeToString(deterministic=True))
        finally:
            writer.close()
        shards.append(_describe(root, path, split=split, num_records=count))
    if next(examples, None) is not None:
        raise UserError(
            f"split {split} was announced with {num_records} examples but its source "
            "has more; correct manifest.splits."
        )
    return shards


def _write_tfds_metadata(
    folder: Path,
    manifest: Manifest,
    features: tfds.features.FeaturesDict,
    shards: Sequence[StoredFile],
) -> None:
    split_infos = []
    for split in manifest.splits:
        own = [shard for shard in shards if shard.split == split]
        template = tfds.core.ShardedFileTemplate(
            dataset_name=manifest.name,
            data_dir=folder,
            split=split,
            filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        )
        split_infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.num_records for shard in own],
                num_bytes=sum(shard.num_bytes for shard in own),
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=split_infos,
        check_data=False,
        description=f"{manifest.grade}: latents and text states. {manifest.licence}",
    )
