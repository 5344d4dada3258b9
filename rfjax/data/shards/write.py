# SPDX-License-Identifier: Apache-2.0
"""Writing a data set: records, TFDS metadata, codec, empty caption and manifest."""

from __future__ import annotations

import collections
import dataclasses
import itertools
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
      examples: split -> records with the keys of `make_features`, those of one bucket
        after those of the other, in the order of the manifest's buckets.
      empty_caption: the text features of the empty caption, padded to full length.
      save_codec: called with the path of codec.npz.
      records_per_shard: at most this many records go into one file.

    Returns:
      The manifest as written.

    Raises:
      UserError: the target is not empty, or a split is empty or of another length.
    """
    whole_files.check_free(root, field="out")
    check_splits(manifest)
    with whole_files.new_folder(root, num_bytes=_num_bytes(manifest)) as partial:
        files = []
        for split in manifest.splits:
            files += _write_split(
                partial,
                manifest,
                split=split,
                examples=examples[split],
                records_per_shard=records_per_shard,
            )
        save_codec(partial / CODEC_FILE)
        save_empty_caption(partial / EMPTY_CAPTION_FILE, empty_caption)
        return finish_dataset(partial, manifest, files)


def check_splits(manifest: Manifest) -> None:
    """Raises UserError if a split has no example."""
    for split, num_records in manifest.splits.items():
        if num_records < 1:
            raise UserError(
                f"split {split} of data set {manifest.name} must hold at least 1 "
                f"example, got {num_records}; ask for more examples."
            )


def shard_file(
    root: Path,
    manifest: Manifest,
    shape: tuple[int, int, int],
    *,
    split: str,
    number: int,
    of: int,
) -> Path:
    """Where TFDS looks for a shard.

    Args:
      root: the data folder.
      manifest: of the data set.
      shape: (H, W, C) of its latents.
      split: of its records.
      number: among the shards of that split and shape.
      of: how many these are.
    """
    name = f"{manifest.name}-{split}.array_record-{number:05d}-of-{of:05d}"
    return tfds_folder(root, manifest, shape) / name


def shard_bounds(num_records: int, records_per_shard: int) -> list[tuple[int, int]]:
    """(start, stop) of the records of each shard: even ones, of at most so many."""
    num_shards = math.ceil(num_records / records_per_shard)
    bounds = [num_records * i // max(num_shards, 1) for i in range(num_shards + 1)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


class RecordEncoder:
    """Turns the features of a record into the bytes that a shard holds.

    Args:
      manifest: of the data set.
      shape: (H, W, C) of the latents.
    """

    def __init__(self, manifest: Manifest, shape: tuple[int, int, int]):
        self._features = make_features(manifest, shape)
        self._serializer = ExampleSerializer(self._features.get_serialized_info())

    def __call__(self, record: Mapping[str, Any]) -> bytes:
        """The same bytes for the same values in every process."""
        example = self._features.encode_example(record)
        # Otherwise each process orders the features in its own way.
        message = self._serializer.get_tf_example(example)
        return message.SerializeToString(deterministic=True)


def write_shard(path: Path, records: Iterable[bytes]) -> int:
    """Writes encoded records into one file, and returns how many there were."""
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    count = 0
    try:
        for record in records:
            writer.write(record)
            count += 1
    finally:
        writer.close()
    return count


def save_empty_caption(path: Path, features: Mapping[str, np.ndarray]) -> None:
    """Writes the text features of the empty caption, padded to full length."""
    # npz cannot hold bfloat16; float32 holds each bfloat16 value exactly.
    arrays = {
        name: np.asarray(value, np.int32)
        if name.endswith("context_length")
        else np.asarray(value, ml_dtypes.bfloat16).astype(np.float32)
        for name, value in features.items()
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)


def finish_dataset(
    root: Path, manifest: Manifest, shards: Sequence[StoredFile]
) -> Manifest:
    """Writes TFDS metadata and manifest beside the shards and whatever else is there.

    Args:
      root: the folder, which is nobody's data set yet.
      manifest: without its files.
      shards: the data files, in the order of the records.

    Returns:
      The manifest as written.
    """
    for shape in manifest.latent.shapes:
        bucket = shape[:2] if manifest.latent.buckets else None
        own = [shard for shard in shards if shard.bucket == bucket]
        _write_tfds_metadata(tfds_folder(root, manifest, shape), manifest, shape, own)
    known = {shard.path for shard in shards} | {MANIFEST_FILE}
    others = tuple(
        describe_file(root, path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).as_posix() not in known
    )
    manifest = dataclasses.replace(manifest, files=(*shards, *others))
    whole_files.write_text(root / MANIFEST_FILE, manifest.to_json())
    return manifest


def describe_file(root: Path, path: Path, **of_shard: Any) -> StoredFile:
    """A file as the manifest lists it.

    Args:
      root: the data folder.
      path: of the file, in it.
      of_shard: further fields, of a data file.
    """
    return StoredFile(
        path=path.relative_to(root).as_posix(),
        num_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        **of_shard,
    )


def _num_bytes(manifest: Manifest) -> int:
    """About what a data set takes: its tensors, those of full captions if they vary."""
    num_values = math.prod(manifest.latent.shape) * (1 + manifest.latent.has_variance)
    for encoder in manifest.text.encoders:
        num_values += encoder.length * encoder.context_dim + encoder.pooled_dim
    itemsize = np.dtype(ml_dtypes.bfloat16).itemsize
    return sum(manifest.splits.values()) * num_values * itemsize


def _write_split(
    root: Path,
    manifest: Manifest,
    *,
    split: str,
    examples: Iterable[Mapping[str, Any]],
    records_per_shard: int,
) -> list[StoredFile]:
    """Writes a split's shards and returns their descriptions."""
    num_records, buckets = manifest.splits[split], manifest.latent.buckets
    if not buckets:
        counts = {manifest.latent.shape: num_records}
    else:  # how many each bucket has is in no manifest
        examples = list(examples)
        shapes = collections.Counter(each["latents"].shape for each in examples)
        counts = {shape: shapes[shape] for shape in manifest.latent.shapes}
    files, examples = [], iter(examples)
    for shape, count in counts.items():
        encode = RecordEncoder(manifest, shape)
        bounds = shard_bounds(count, records_per_shard)
        for number, (start, stop) in enumerate(bounds):
            path = shard_file(
                root, manifest, shape, split=split, number=number, of=len(bounds)
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            records = map(encode, itertools.islice(examples, stop - start))
            files.append(
                describe_file(
                    root,
                    path,
                    split=split,
                    num_records=write_shard(path, records),
                    bucket=shape[:2] if buckets else None,
                )
            )
    found = sum(file.num_records for file in files)
    if found < num_records or next(examples, None) is not None:
        what = f"ended early, after {found}" if found < num_records else "has more"
        raise UserError(
            f"split {split} was announced with {num_records} examples but its source "
            f"{what}; correct manifest.splits."
        )
    return files


def _write_tfds_metadata(
    folder: Path,
    manifest: Manifest,
    shape: tuple[int, int, int],
    shards: Sequence[StoredFile],
) -> None:
    split_infos = []
    for split in manifest.splits:
        own = [shard for shard in shards if shard.split == split]
        if not own:  # of this bucket
            continue
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
    folder.mkdir(parents=True, exist_ok=True)
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=make_features(manifest, shape),
        split_infos=split_infos,
        check_data=False,
        description=f"{manifest.grade}: latents and text states. {manifest.licence}",
    )
