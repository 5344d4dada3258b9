# SPDX-License-Identifier: Apache-2.0
"""Encoding: pictures and captions become latents and text states in shards.

A source gives numbered examples; the codec is fitted to training pictures; then batches
go through codec and text encoder into the writer, one example at a time.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from rfjax import schema, whole_files
from rfjax.data import shards
from rfjax.data.emoji import SOURCES, EmojiConfig, SceneConfig
from rfjax.encoders.patch_codec import PatchCodec, fit_patch_codec
from rfjax.encoders.text import TEXT_ENCODERS, make_text_encoder
from rfjax.errors import UserError

LAYOUTS = ("padded", "unpadded")


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """What is encoded, and how.

    Attributes:
      name: name of the TFDS data set; a Python identifier.
      grade: key of `rfjax.data.emoji.SOURCES`.
      source: the config of that grade.
      patch_size: pixels of a side that become one latent position.
      latent_channels: channels of the latents.
      whitening: see `rfjax.encoders.patch_codec`.
      num_codec_images: training pictures that the codec is fitted to, at most.
      text_encoder: key of `rfjax.encoders.text.TEXT_ENCODERS`.
      text_length: tokens that a context is padded to.
      text_layout: "padded" keeps the pads' states; "unpadded" stores real tokens only.
      batch_size: examples that are encoded at a time.
      records_per_shard: examples in a file, at most.
    """

    name: str
    grade: str
    source: EmojiConfig | SceneConfig
    patch_size: int = 4
    latent_channels: int = 16
    whitening: float = 0.5
    num_codec_images: int = 2048
    text_encoder: str = "minilm"
    text_length: int = 12
    text_layout: str = "padded"
    batch_size: int = 256
    records_per_shard: int = 1024

    def __post_init__(self):
        if not self.name.isidentifier():
            raise UserError(
                f"name must be a Python identifier, got {self.name!r}; use letters, "
                "digits and underscores."
            )
        for field, choices in (
            ("grade", SOURCES),
            ("text_encoder", TEXT_ENCODERS),
            ("text_layout", LAYOUTS),
        ):
            if getattr(self, field) not in choices:
                raise UserError(
                    f"{field} must be one of {sorted(choices)}, got "
                    f"{getattr(self, field)!r}."
                )
        for field in ("batch_size", "records_per_shard", "num_codec_images"):
            if getattr(self, field) < 1:
                raise UserError(
                    f"{field} must be at least 1, got {getattr(self, field)}."
                )
        if self.source.image_size % self.patch_size:
            raise UserError(
                f"patch_size {self.patch_size} must divide source.image_size "
                f"{self.source.image_size}; choose e.g. 4 and 32."
            )


def make_encode_config(fields: Mapping[str, Any]) -> EncodeConfig:
    """Builds an EncodeConfig from a config file's dictionary, `source` nested in it.

    Raises:
      UserError: a field is unknown, missing or out of range.
    """
    fields = dict(fields)
    grade = fields.get("grade")
    if grade not in SOURCES:
        raise UserError(f"grade must be one of {sorted(SOURCES)}, got {grade!r}.")
    source_type = SOURCES[grade][0]
    source = schema.build(source_type, fields.get("source", {}), prefix="source.")
    return schema.build(EncodeConfig, fields | {"source": source})


def encode_dataset(
    config: EncodeConfig,
    *,
    out: str | os.PathLike,
    progress: Callable[[int, int], None] | None = None,
) -> shards.Manifest:
    """Encodes a whole data set into the folder `out`.

    Args:
      config: what and how.
      out: must be new or empty; appears only when complete.
      progress: called with (examples done, examples in all).

    Returns:
      The manifest of the data set.

    Raises:
      UserError: `out` is not empty, or a caption is too long.
      MissingPackageError: a package of the source or the text encoder is missing.
    """
    whole_files.check_free(out, field="out")
    source = SOURCES[config.grade][1](config.source)
    text_encoder = make_text_encoder(config.text_encoder, length=config.text_length)
    codec = _fit_codec(config, source)
    size = config.source.image_size // config.patch_size
    encoder = shards.EncoderSpec(
        name=config.text_encoder,
        kind=config.text_encoder,
        context_dim=text_encoder.context_dim,
        length=config.text_length,
        pooled_dim=text_encoder.pooled_dim,
    )
    manifest = shards.Manifest(
        name=config.name,
        grade=config.grade,
        splits=source.splits,
        latent=shards.LatentSpec(
            shape=(size, size, config.latent_channels), codec="patch_pca"
        ),
        text=shards.TextSpec(encoders=(encoder,), layout=config.text_layout),
        licence=source.licence,
        creation=dataclasses.asdict(config),
    )
    reporter = _Progress(progress, total=sum(source.splits.values()))
    return shards.write_dataset(
        out,
        manifest=manifest,
        examples={
            split: _encode_split(config, source, split, codec, text_encoder, reporter)
            for split in source.splits
        },
        empty_caption=_text_features(text_encoder.encode([""]), 0, layout="padded"),
        save_codec=codec.save,
        records_per_shard=config.records_per_shard,
    )


def _fit_codec(config: EncodeConfig, source) -> PatchCodec:
    """Fits to training pictures only, spread evenly over the split."""
    num_train = source.splits["train"]
    num_images = min(num_train, config.num_codec_images)
    indices = [num_train * i // num_images for i in range(num_images)]
    return fit_patch_codec(
        np.stack([source.example("train", index).image for index in indices]),
        patch_size=config.patch_size,
        channels=config.latent_channels,
        whitening=config.whitening,
    )


def _encode_split(
    config, source, split, codec, text_encoder, reporter
) -> Iterator[dict[str, Any]]:
    num_examples = source.splits[split]
    for start in range(0, num_examples, config.batch_size):
        stop = min(start + config.batch_size, num_examples)
        examples = [source.example(split, index) for index in range(start, stop)]
        latents = codec.encode(np.stack([example.image for example in examples]))
        text = text_encoder.encode([example.caption for example in examples])
        for row, example in enumerate(examples):
            yield {
                "latents": latents[row].astype(ml_dtypes.bfloat16),
                "caption": example.caption,
                "annotation": json.dumps(example.annotation, ensure_ascii=False),
                **_text_features(text, row, layout=config.text_layout),
            }
        reporter.add(len(examples))


def _text_features(text, row: int, *, layout: str) -> dict[str, np.ndarray]:
    length = text.context_length[row]
    context = text.context[row] if layout == "padded" else text.context[row][:length]
    return {
        "context": context.astype(ml_dtypes.bfloat16),
        "context_length": length,
        "pooled": text.pooled[row].astype(ml_dtypes.bfloat16),
    }


class _Progress:
    """Counts over all splits."""

    def __init__(self, callback, *, total):
        self._callback, self._total, self._done = callback, total, 0

    def add(self, num_examples: int) -> None:
        self._done += num_examples
        if self._callback:
            self._callback(self._done, self._total)
