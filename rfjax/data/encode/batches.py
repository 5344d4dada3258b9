# SPDX-License-Identifier: Apache-2.0
"""Batches of pictures and captions to the features of records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from rfjax.data.buckets import fit
from rfjax.data.encode.config import EncodeConfig
from rfjax.data.encode.notes import Broken, Notes
from rfjax.data.encode.plan import digest_of_picture, digest_of_size
from rfjax.data.manifest import EncoderSpec, Manifest
from rfjax.data.sources import EncodedSource, Entry, Source
from rfjax.encoders.images import ImageCodec
from rfjax.encoders.text import EncodedText, TextEncoder
from rfjax.errors import UserError

Features = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A record of a source, opened.

    Attributes:
      entry: what the source knows of it.
      content: the picture, [H, W, 3] uint8 of its bucket's size; or the features of a
        source that is encoded already.
      facts: what is known of it now, for its annotation.
      digests: of the picture, and of its size, as the source gave it; none of features.
    """

    entry: Entry
    content: np.ndarray | Features
    facts: Mapping[str, Any]
    digests: tuple[int, ...] = ()


class BatchEncoder:
    """Opens records of a source, and encodes them.

    Args:
      config: what is encoded, and how.
      source: of the config.
      manifest: of the data set.
      codec: of the config; None if the source is encoded already.
      text_encoders: of the config; none if the source is encoded already.
    """

    def __init__(
        self,
        config: EncodeConfig,
        source: Source | EncodedSource,
        manifest: Manifest,
        codec: ImageCodec | None,
        text_encoders: Sequence[TextEncoder],
    ):
        self._source = source
        self._manifest = manifest
        self._codec = codec
        self._text_encoders = text_encoders
        self._sizes = {shape: size for size, shape in config.latent_shapes().items()}

    def load(self, index: int, entry: Entry, shape: tuple[int, int, int]) -> Loaded:
        """Opens a record.

        Args:
          index: its number in the source.
          entry: what the source knows of it.
          shape: that its latents are to have.

        Raises:
          BrokenPicture: it cannot be opened.
        """
        facts = {
            "key": entry.key,
            "licence": entry.licence,
            "attribution": entry.attribution,
        }
        if isinstance(self._source, EncodedSource):
            return Loaded(entry, self._source.features(index), facts)
        picture = self._source.picture(index)
        image, crop = fit(picture, self._sizes[shape])
        facts |= {"size": list(picture.shape[:2]), "crop": list(crop)}
        digests = digest_of_picture(picture), digest_of_size(picture.shape[:2])
        return Loaded(entry, image, facts, digests)

    def encode(self, batch: Sequence[Loaded], notes: Notes) -> list[Features]:
        """Encodes records of one bucket.

        Those whose captions an encoder refuses are noted as broken and left out.

        Args:
          batch: at least one.
          notes: of the shard they go into.

        Returns:
          The features of each record that is left, as `shards.make_features` has them.
        """
        if isinstance(self._source, EncodedSource):
            return [{**each.content, **self._described(each)} for each in batch]
        try:
            texts = self._encode_captions(batch, notes)
        except UserError:
            batch = [each for each in batch if self._takes(each, notes)]
            texts = self._encode_captions(batch, notes) if batch else []
        if not batch:
            return []
        latents = self._encode_images(np.stack([each.content for each in batch]))
        return [
            {
                **{name: array[row] for name, array in latents.items()},
                **self._described(each),
                **texts[row],
            }
            for row, each in enumerate(batch)
        ]

    def empty_caption(self) -> Features:
        """The text features of the empty caption, padded to full length."""
        if isinstance(self._source, EncodedSource):
            return self._source.empty_caption()
        features = {}
        for encoder, spec in self._encoders():
            text = encoder.encode([""])
            features |= self._text_features(text, 0, spec, caption=0, padded=True)
        return features

    def _encode_images(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Pictures [B, H, W, 3] to bfloat16 latents, and their log-variance."""
        if self._manifest.latent.has_variance:
            mean, log_variance = self._codec.encode_posterior(images)
            arrays = {"latents": mean, "log_variance": log_variance}
        else:
            arrays = {"latents": self._codec.encode(images)}
        return {name: each.astype(ml_dtypes.bfloat16) for name, each in arrays.items()}

    def _described(self, loaded: Loaded) -> Features:
        """What a record holds beside latents and text states."""
        first, *others = loaded.entry.captions
        annotation = {**loaded.entry.annotation, "source": loaded.facts}
        return {
            "caption": first,
            **dict(zip(self._source.caption_kinds[1:], others, strict=True)),
            "annotation": json.dumps(annotation, ensure_ascii=False),
        }

    def _takes(self, loaded: Loaded, notes: Notes) -> bool:
        """Whether every encoder takes the captions of a record; notes it if not."""
        try:
            self._encode_captions([loaded], Notes())
        except UserError as error:
            notes.broken.append(Broken(loaded.entry.key, str(error)))
            return False
        return True

    def _encode_captions(
        self, batch: Sequence[Loaded], notes: Notes
    ) -> list[dict[str, Any]]:
        """The text features of each record of a batch.

        Raises:
          UserError: an encoder refuses a caption; nothing is noted then.
        """
        padded = self._manifest.text.layout == "padded"
        features: list[dict[str, Any]] = [{} for _ in batch]
        found = []
        for caption in range(len(self._source.caption_kinds)):
            texts = [each.entry.captions[caption] for each in batch]
            # A record may lack any caption but the first, which is then the empty one.
            rows = [row for row, text in enumerate(texts) if text or not caption]
            given = [texts[row] for row in rows]
            for encoder, spec in self._encoders():
                for row in set(range(len(batch))).difference(rows):
                    features[row] |= self._no_text(spec, caption)
                if not rows:
                    continue
                text = encoder.encode(given)
                found.append((spec, given, text))
                for place, row in enumerate(rows):
                    features[row] |= self._text_features(
                        text, place, spec, caption=caption, padded=padded
                    )
        for spec, given, text in found:
            notes.note_text(spec.name, given, text, length=spec.length)
        return features

    def _encoders(self) -> list[tuple[TextEncoder, EncoderSpec]]:
        specs = self._manifest.text.encoders
        return list(zip(self._text_encoders, specs, strict=True))

    def _text_features(
        self,
        text: EncodedText,
        row: int,
        spec: EncoderSpec,
        *,
        caption: int,
        padded: bool,
    ) -> dict[str, Any]:
        """What a record holds of one of its captions as one encoder gives it."""
        features, length = {}, text.context_length[row]
        if spec.context_dim:
            context = text.context[row] if padded else text.context[row][:length]
            features["context"] = context.astype(ml_dtypes.bfloat16)
            features["context_length"] = np.int32(length)
        if spec.pooled_dim:
            features["pooled"] = text.pooled[row].astype(ml_dtypes.bfloat16)
        return self._named(features, spec, caption)

    def _no_text(self, spec: EncoderSpec, caption: int) -> dict[str, Any]:
        """The same, of a caption that the record does not have."""
        features = {}
        if spec.context_dim:
            features["context"] = np.zeros((0, spec.context_dim), ml_dtypes.bfloat16)
            features["context_length"] = np.int32(0)
        if spec.pooled_dim:
            features["pooled"] = np.zeros(spec.pooled_dim, ml_dtypes.bfloat16)
        return self._named(features, spec, caption)

    def _named(
        self, features: Mapping[str, Any], spec: EncoderSpec, caption: int
    ) -> dict[str, Any]:
        return {
            self._manifest.feature(caption, spec, part): value
            for part, value in features.items()
        }
