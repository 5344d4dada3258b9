# SPDX-License-Identifier: Apache-2.0
"""Encoded data sets on disk: TFDS records in ArrayRecord shards, beside a manifest.

    ROOT/rfjax.json            the manifest: shapes, encoders, counts, checksums
    ROOT/codec.npz             what turns latents back into pictures
    ROOT/empty_caption.npz     the encoded empty caption, used when a caption is dropped
    ROOT/tfds/NAME/1.0.0/      a genuine TFDS data set: `tfds.builder_from_directory`;
                               with several buckets one of each, NAME/HxW/1.0.0

Tensors are stored as raw bfloat16 bytes in uncompressed records of one example each:
compression saves a fifth of bfloat16 data and costs half of the reading rate.
TensorFlow is never imported.
"""

from rfjax.data.shards.check import check_shards, find_damage, sha256_of
from rfjax.data.shards.config import ShardsConfig
from rfjax.data.shards.contents import problems_of_record
from rfjax.data.shards.features import check_features
from rfjax.data.shards.layout import (
    CODEC_FILE,
    EMPTY_CAPTION_FILE,
    read_manifest,
    tfds_folder,
)
from rfjax.data.shards.read import (
    open_shards,
    open_split,
    read_codec,
    read_empty_caption,
)
from rfjax.data.shards.write import (
    RecordEncoder,
    check_splits,
    finish_dataset,
    save_empty_caption,
    shard_bounds,
    shard_file,
    write_dataset,
    write_shard,
)

__all__ = [
    "CODEC_FILE",
    "EMPTY_CAPTION_FILE",
    "RecordEncoder",
    "ShardsConfig",
    "check_features",
    "check_shards",
    "check_splits",
    "find_damage",
    "finish_dataset",
    "open_shards",
    "open_split",
    "problems_of_record",
    "read_codec",
    "read_empty_caption",
    "read_manifest",
    "save_empty_caption",
    "sha256_of",
    "shard_bounds",
    "shard_file",
    "tfds_folder",
    "write_dataset",
    "write_shard",
]
