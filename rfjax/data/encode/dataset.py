# SPDX-License-Identifier: Apache-2.0
"""Encoding: pictures and captions become latents and text states in shards.

A source gives numbered examples; the codec is made, fitted to training pictures if it
needs to be; then batches go through codec and text encoder into the writer, one example
at a time.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from rfjax import schema, whole_files
from rfjax.data import shards
from rfjax.data.encode.config import EncodeConfig
from rfjax.data.manifest import EncoderSpec, LatentSpec, Manifest, TextSpec
from rfjax.data.sources import Source
from rfjax.data.sources.held_out import is_held_out
from rfjax.encoders.images import ImageCodec
from rfjax.encoders.text import CutCaptions, EncodedText, TextEncoder, UnknownWords


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
      warn: told in a sentence each which words a text encoder does not know and which
        captions it cuts, if any.

    Returns:
      The manifest of the data set.

    Raises:
      UserError: `out` is not empty, or a caption is too long.
      MissingPackageError: a package of source, codec or text encoder is missing.
    """
    whole_files.check_free(out, field="out")
    source = config.source.make()
    for note in getattr(source, "notes", ()):
        warn(note)
    text_encoders = [encoder.make() for encoder in config.text_encoders]
    splits = _split(config, source)
    codec = config.codec.make(_TrainingImages(source, splits["train"]))
    manifest = _describe(config, source, splits, codec, text_encoders)
    reporter = _Progress(progress, total=len(source))
    lost = [
        (UnknownWords(encoder.name), CutCaptions(encoder.name, encoder.length))
        for encoder in manifest.text.encoders
    ]

    def encode_captions(captions: Sequence[str]) -> list[EncodedText]:
        """Encodes captions by each encoder, and notes what it loses of them."""
        texts = [encoder.encode(captions) for encoder in text_encoders]
        for kinds, text in zip(lost, texts, strict=True):
            for each in kinds:
                each.add(captions, text)
        return texts

    manifest = shards.write_dataset(
        out,
        manifest=manifest,
        examples={
            split: _encode_split(
                config, source, numbers, manifest, codec, encode_captions, reporter
            )
            for split, numbers in splits.items()
        },
        empty_caption=_text_features(
            manifest,
            0,
            [encoder.encode([""]) for encoder in text_encoders],
            0,
            layout="padded",
        ),
        save_codec=codec.save,
        records_per_shard=config.records_per_shard,
    )
    for sentence in filter(None, (str(each) for kinds in lost for each in kinds)):
        warn(sentence)
    return manifest


def _split(config: EncodeConfig, source: Source) -> dict[str, list[int]]:
    """Split -> numbers of its records in the source."""
    splits: dict[str, list[int]] = {"train": [], "validation": []}
    for index in range(len(source)):
        entry = source.entry(index)
        held_out = is_held_out(entry.captions[0], fraction=config.validation_fraction)
        splits[entry.split or ("validation" if held_out else "train")].append(index)
    return splits


def _describe(
    config: EncodeConfig,
    source: Source,
    splits: Mapping[str, Sequence[int]],
    codec: ImageCodec,
    text_encoders: Sequence[TextEncoder],
) -> Manifest:
    """The manifest of what will be written; its kinds are keys of the tables."""
    creation = schema.to_dict(config)
    size = config.source.image_size
    kinds = source.caption_kinds
    return Manifest(
        name=config.name,
        grade=creation["source"]["kind"],
        splits={split: len(numbers) for split, numbers in splits.items()},
        latent=LatentSpec(
            shape=config.codec.latent_shape(size, size),
            codec=creation["codec"]["kind"],
            codec_scale=getattr(codec, "scaling_factor", None),
            codec_shift=getattr(codec, "shift_factor", None),
        ),
        text=TextSpec(
            encoders=tuple(
                _describe_encoder(
                    name, section, encoder, is_only=len(text_encoders) < 2
                )
                for name, section, encoder in zip(
                    config.encoder_names,
                    creation["text_encoders"],
                    text_encoders,
                    strict=True,
                )
            ),
            layout=config.text_layout,
            captions=kinds if len(kinds) > 1 else (),
            context_dim=config.context_dim,
        ),
        licence=source.licence,
        creation=creation,
    )


def _describe_encoder(
    name: str, section: Mapping[str, Any], encoder: TextEncoder, *, is_only: bool
) -> EncoderSpec:
    """What the manifest says of an encoder, made by a section of the config."""
    own = ("kind", "name", "length")
    return EncoderSpec(
        name=name,
        kind=section["kind"],
        context_dim=encoder.context_dim,
        length=section["length"],
        pooled_dim=encoder.pooled_dim,
        prefix="" if is_only else f"{name}_",
        joined=encoder.joined,
        mask=encoder.mask,
        fields={key: value for key, value in section.items() if key not in own},
        weights=encoder.weights,
    )


class _TrainingImages(Sequence):
    """The pictures of a source's training split, each drawn when it is asked for."""

    def __init__(self, source: Source, numbers: Sequence[int]):
        self._source, self._numbers = source, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._source.picture(self._numbers[index])


def _encode_split(
    config: EncodeConfig,
    source: Source,
    numbers: Sequence[int],
    manifest: Manifest,
    codec: ImageCodec,
    encode_captions: Callable[[Sequence[str]], list[EncodedText]],
    reporter: _Progress,
) -> Iterator[dict[str, Any]]:
    for start in range(0, len(numbers), config.batch_size):
        batch = numbers[start : start + config.batch_size]
        entries = [source.entry(index) for index in batch]
        latents = codec.encode(np.stack([source.picture(index) for index in batch]))
        texts = encode_captions([entry.captions[0] for entry in entries])
        for row, entry in enumerate(entries):
            yield {
                "latents": latents[row].astype(ml_dtypes.bfloat16),
                "caption": entry.captions[0],
                "annotation": json.dumps(entry.annotation, ensure_ascii=False),
                **_text_features(manifest, 0, texts, row, layout=config.text_layout),
            }
        reporter.add(len(batch))


def _text_features(
    manifest: Manifest,
    caption: int,
    texts: Sequence[EncodedText],
    row: int,
    *,
    layout: str,
) -> dict[str, np.ndarray]:
    """What a record holds of one of its captions, encoded by each encoder."""
    features = {}
    for encoder, text in zip(manifest.text.encoders, texts, strict=True):
        length = text.context_length[row]
        context = text.context[row]
        if layout == "unpadded":
            context = context[:length]
        for part, value in (("context", context), ("pooled", text.pooled[row])):
            if value.shape[-1]:
                name = manifest.feature(caption, encoder, part)
                features[name] = value.astype(ml_dtypes.bfloat16)
        features[manifest.feature(caption, encoder, "context_length")] = length
    return features


class _Progress:
    """Counts over all splits."""

    def __init__(self, callback: Callable[[int, int], None] | None, *, total: int):
        self._callback, self._total, self._done = callback, total, 0

    def add(self, num_examples: int) -> None:
        """Counts examples as done, and reports it."""
        self._done += num_examples
        if self._callback:
            self._callback(self._done, self._total)
