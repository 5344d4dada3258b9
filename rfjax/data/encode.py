# SPDX-License-Identifier: Apache-2.0
"""Encoding: pictures and captions become latents and text states in shards.

A source gives numbered examples; the codec is made, fitted to training pictures if it
needs to be; then batches go through codec and text encoder into the writer, one example
at a time.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import ml_dtypes
import numpy as np

from rfjax import schema, whole_files
from rfjax.data import shards
from rfjax.data.manifest import EncoderSpec, LatentSpec, Manifest, TextSpec
from rfjax.data.sources import SOURCES, Source, SourceConfig
from rfjax.encoders.images import IMAGE_CODECS, ImageCodec, ImageCodecConfig
from rfjax.encoders.text import (
    TEXT_ENCODERS,
    EncodedText,
    TextEncoder,
    TextEncoderConfig,
    UnknownWords,
)
from rfjax.errors import UserError
from rfjax.value_types import OneOf, PositiveInt, check_fields

LAYOUTS = ("padded", "unpadded")


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """What is encoded, and how.

    Attributes:
      name: name of the TFDS data set; a Python identifier.
      source: pictures and captions.
      codec: pictures to latents.
      text_encoder: captions to text states.
      text_layout: "padded" keeps the pads' states; "unpadded" stores real tokens only.
      batch_size: examples that are encoded at a time.
      records_per_shard: examples in a file, at most.
    """

    name: str
    source: SourceConfig = schema.one_of(SOURCES)
    codec: ImageCodecConfig = schema.one_of(IMAGE_CODECS, default="patch_pca")
    text_encoder: TextEncoderConfig = schema.one_of(TEXT_ENCODERS, default="minilm")
    text_layout: Annotated[str, OneOf(LAYOUTS)] = "padded"
    batch_size: PositiveInt = 256
    records_per_shard: PositiveInt = 1024

    def __post_init__(self):
        check_fields(self)
        if not self.name.isidentifier():
            raise UserError(
                f"name must be a Python identifier, got {self.name!r}; use letters, "
                "digits and underscores."
            )
        self.codec.latent_shape(self.source.image_size)  # raises unless they fit


def encode_dataset(
    config: EncodeConfig,
    *,
    out: str | os.PathLike,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> Manifest:
    """Encodes a whole data set into the folder `out`.

    Args:
      config: what and how.
      out: must be new or empty; appears only when complete.
      progress: called with (examples done, examples in all).
      warn: told in a sentence which words the text encoder does not know, if any.

    Returns:
      The manifest of the data set.

    Raises:
      UserError: `out` is not empty, or a caption is too long.
      MissingPackageError: a package of source, codec or text encoder is missing.
    """
    whole_files.check_free(out, field="out")
    source = config.source.make()
    text_encoder = config.text_encoder.make()
    codec = config.codec.make(_TrainingImages(source))
    reporter = _Progress(progress, total=sum(source.splits.values()))
    manifest = _describe(config, source, codec, text_encoder)
    unknown = UnknownWords(manifest.text.encoders[0].kind)

    def encode_captions(captions: Sequence[str]) -> EncodedText:
        """Encodes captions, and notes what the encoder does not know."""
        text = text_encoder.encode(captions)
        unknown.add(captions, text)
        return text

    manifest = shards.write_dataset(
        out,
        manifest=manifest,
        examples={
            split: _encode_split(
                config, source, split, codec, encode_captions, reporter
            )
            for split in source.splits
        },
        empty_caption=_text_features(text_encoder.encode([""]), 0, layout="padded"),
        save_codec=codec.save,
        records_per_shard=config.records_per_shard,
    )
    if str(unknown):
        warn(str(unknown))
    return manifest


def _describe(
    config: EncodeConfig, source: Source, codec: ImageCodec, text_encoder: TextEncoder
) -> Manifest:
    """The manifest of what will be written; its kinds are keys of the tables."""
    creation = schema.to_dict(config)
    encoder = EncoderSpec(
        name=creation["text_encoder"]["kind"],
        kind=creation["text_encoder"]["kind"],
        context_dim=text_encoder.context_dim,
        length=config.text_encoder.length,
        pooled_dim=text_encoder.pooled_dim,
    )
    return Manifest(
        name=config.name,
        grade=creation["source"]["kind"],
        splits=source.splits,
        latent=LatentSpec(
            shape=config.codec.latent_shape(config.source.image_size),
            codec=creation["codec"]["kind"],
            codec_scale=getattr(codec, "scaling_factor", None),
            codec_shift=getattr(codec, "shift_factor", None),
        ),
        text=TextSpec(encoders=(encoder,), layout=config.text_layout),
        licence=source.licence,
        creation=creation,
    )


class _TrainingImages(Sequence):
    """The pictures of a source's training split, each drawn when it is asked for."""

    def __init__(self, source: Source):
        self._source = source

    def __len__(self) -> int:
        return self._source.splits["train"]

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._source.example("train", index).image


def _encode_split(
    config: EncodeConfig,
    source: Source,
    split: str,
    codec: ImageCodec,
    encode_captions: Callable[[Sequence[str]], EncodedText],
    reporter: _Progress,
) -> Iterator[dict[str, Any]]:
    num_examples = source.splits[split]
    for start in range(0, num_examples, config.batch_size):
        stop = min(start + config.batch_size, num_examples)
        examples = [source.example(split, index) for index in range(start, stop)]
        latents = codec.encode(np.stack([example.image for example in examples]))
        text = encode_captions([example.caption for example in examples])
        for row, example in enumerate(examples):
            yield {
                "latents": latents[row].astype(ml_dtypes.bfloat16),
                "caption": example.caption,
                "annotation": json.dumps(example.annotation, ensure_ascii=False),
                **_text_features(text, row, layout=config.text_layout),
            }
        reporter.add(len(examples))


def _text_features(
    text: EncodedText, row: int, *, layout: str
) -> dict[str, np.ndarray]:
    length = text.context_length[row]
    context = text.context[row] if layout == "padded" else text.context[row][:length]
    return {
        "context": context.astype(ml_dtypes.bfloat16),
        "context_length": length,
        "pooled": text.pooled[row].astype(ml_dtypes.bfloat16),
    }


class _Progress:
    """Counts over all splits."""

    def __init__(self, callback: Callable[[int, int], None] | None, *, total: int):
        self._callback, self._total, self._done = callback, total, 0

    def add(self, num_examples: int) -> None:
        """Counts examples as done, and reports it."""
        self._done += num_examples
        if self._callback:
            self._callback(self._done, self._total)
