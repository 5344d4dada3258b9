# SPDX-License-Identifier: Apache-2.0
"""What a data set is to be, as its manifest says it before a record is encoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rfjax import schema
from rfjax.data.encode.config import EncodeConfig
from rfjax.data.manifest import EncoderSpec, LatentSpec, Manifest, TextSpec
from rfjax.data.sources import EncodedSource, Source
from rfjax.encoders.images import ImageCodec
from rfjax.encoders.text import TextEncoder
from rfjax.errors import UserError

# Fields of a config that are about pictures and captions.
_OF_ENCODERS = ("codec", "text_encoders", "buckets")


def describe(
    config: EncodeConfig,
    source: Source | EncodedSource,
    codec: ImageCodec | None,
    text_encoders: Sequence[TextEncoder],
    *,
    splits: Mapping[str, int],
    shapes: Sequence[tuple[int, int, int]],
) -> Manifest:
    """The manifest of a data set, without its files.

    Args:
      config: how it is made.
      source: of the config.
      codec: of the config; None if the source is encoded already.
      text_encoders: of the config; none if the source is encoded already.
      splits: split -> number of records.
      shapes: (H, W, C) of the latents of each bucket that holds any.
    """
    creation = schema.to_dict(config)
    if isinstance(source, EncodedSource):
        latent, encoders = source.latent_spec, source.encoder_specs
    else:
        latent = _describe_latents(config, codec, shapes)
        encoders = describe_encoders(config, text_encoders)
    kinds = source.caption_kinds
    return Manifest(
        name=config.name,
        grade=creation["source"]["kind"],
        splits=splits,
        latent=latent,
        text=TextSpec(
            encoders=encoders,
            layout=config.text_layout,
            captions=kinds if len(kinds) > 1 else (),
            context_dim=config.context_dim,
        ),
        licence=source.licence,
        creation=creation,
    )


def describe_encoders(
    config: EncodeConfig, text_encoders: Sequence[TextEncoder]
) -> tuple[EncoderSpec, ...]:
    """What the manifest says of each text encoder of a config."""
    sections = schema.to_dict(config)["text_encoders"]
    return tuple(
        _describe_encoder(name, section, encoder, is_only=len(text_encoders) < 2)
        for name, section, encoder in zip(
            config.encoder_names, sections, text_encoders, strict=True
        )
    )


def check_encoded(config: EncodeConfig) -> None:
    """Raises UserError if a config asks what cannot be done with an `EncodedSource`."""
    default = EncodeConfig(name=config.name, source=config.source)
    for name in _OF_ENCODERS:
        if getattr(config, name) != getattr(default, name):
            raise UserError(
                f"{name} must be left out, since source {_kind(config)} is encoded "
                f"already, got {getattr(config, name)!r}; leave it out."
            )
    if config.filters.reads_pictures:
        raise UserError(
            f"filters must not ask for pictures, which source {_kind(config)} does not "
            "have, since it is encoded already; leave them out."
        )


def with_shapes(
    latent: LatentSpec, shapes: Sequence[tuple[int, int, int]]
) -> LatentSpec:
    """The latents of a data set of which only some buckets hold records."""
    shape = latent.shape if latent.shape in shapes else shapes[len(shapes) // 2]
    buckets = tuple(each[:2] for each in shapes) if len(shapes) > 1 else ()
    return dataclasses.replace(latent, shape=shape, buckets=buckets)


def _describe_latents(
    config: EncodeConfig, codec: ImageCodec, shapes: Sequence[tuple[int, int, int]]
) -> LatentSpec:
    latent = LatentSpec(
        shape=config.latent_shapes()[config.square],
        codec=schema.to_dict(config)["codec"]["kind"],
        codec_scale=getattr(codec, "scaling_factor", None),
        codec_shift=getattr(codec, "shift_factor", None),
        codec_weights=codec.weights,
        has_variance=codec.has_variance,
    )
    return with_shapes(latent, shapes)


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


def _kind(config: EncodeConfig) -> str:
    return schema.to_dict(config)["source"]["kind"]
