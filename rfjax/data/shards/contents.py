# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the contents of one record, or of the empty caption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from rfjax.data.manifest import EncoderSpec, Manifest

# Latents have variance 1, no autoencoder's posterior is as wide or as narrow as the
# second, and no text encoder that is in use comes near the third.
LARGEST_LATENT = 1e3
LARGEST_LOG_VARIANCE = 1e2
LARGEST_TEXT_STATE = 1e5


def problems_of_record(record: Mapping[str, Any], manifest: Manifest) -> list[str]:
    """What is wrong with a record, one sentence each.

    Args:
      record: as `RecordSource` decodes it.
      manifest: of its data set.
    """
    shape = getattr(record.get("latents"), "shape", None)
    if shape not in manifest.latent.shapes:
        shape = manifest.latent.shape
    problems = _problems_of_array(record, "latents", shape, largest=LARGEST_LATENT)
    if manifest.latent.has_variance:
        problems += _problems_of_array(
            record, "log_variance", shape, largest=LARGEST_LOG_VARIANCE
        )
    for name in ("caption", *manifest.text.captions[1:]):
        try:
            record[name].decode()
        except (KeyError, UnicodeDecodeError):
            problems.append(f"{name} is not UTF-8 text.")
    try:
        json.loads(record["annotation"] or b"null")
    except (KeyError, ValueError):
        problems.append("annotation is neither empty nor JSON.")
    padded = manifest.text.layout == "padded"
    problems += problems_of_text(record, manifest, padded=padded)
    for caption, name in enumerate(manifest.text.captions[1:], start=1):
        for encoder in manifest.text.encoders:
            problems += _problems_of_encoder(
                record,
                manifest,
                encoder,
                caption=caption,
                padded=padded,
                is_there=bool(record.get(name)),
            )
    return problems


def problems_of_text(
    features: Mapping[str, Any], manifest: Manifest, *, padded: bool
) -> list[str]:
    """What is wrong with the states of a record's first caption, or of the empty one.

    Args:
      features: name -> array.
      manifest: of the data set.
      padded: whether contexts have all their tokens, or those before the pads only.
    """
    problems = []
    for encoder in manifest.text.encoders:
        problems += _problems_of_encoder(features, manifest, encoder, padded=padded)
    return problems


def _problems_of_encoder(
    features: Mapping[str, Any],
    manifest: Manifest,
    encoder: EncoderSpec,
    *,
    caption: int = 0,
    padded: bool,
    is_there: bool = True,
) -> list[str]:
    """What is wrong with one encoder's states of a caption.

    Args:
      features: name -> array.
      manifest: of the data set.
      encoder: one of its encoders.
      caption: number of the caption.
      padded: whether the context has all its tokens.
      is_there: whether the record has such a caption; else it has no token.
    """
    problems = []
    if encoder.context_dim:
        name = manifest.feature(caption, encoder, "context_length")
        stored = np.asarray(features.get(name, np.nan))
        if stored.shape != () or not np.issubdtype(stored.dtype, np.integer):
            found = _describe(features.get(name))
            return [f"{name} must be a whole number, got {found}."]
        length, least = int(stored), int(is_there)
        most = encoder.length if is_there else 0
        if not least <= length <= most:
            problems.append(f"{name} is {length}, outside {least}..{most}.")
        rows = most if padded else length
        problems += _problems_of_array(
            features,
            manifest.feature(caption, encoder, "context"),
            (rows, encoder.context_dim),
            largest=LARGEST_TEXT_STATE,
        )
    if encoder.pooled_dim:
        problems += _problems_of_array(
            features,
            manifest.feature(caption, encoder, "pooled"),
            (encoder.pooled_dim,),
            largest=LARGEST_TEXT_STATE,
        )
    return problems


def _problems_of_array(
    features: Mapping[str, Any], name: str, shape: tuple[int, ...], *, largest: float
) -> list[str]:
    """What is wrong with one bfloat16 array, at most one sentence."""
    value = features.get(name)
    if getattr(value, "shape", None) != shape or value.dtype != ml_dtypes.bfloat16:
        return [f"{name} must be {shape} bfloat16, got {_describe(value)}."]
    values = np.abs(value.astype(np.float32))
    if not np.isfinite(values).all():
        return [f"{name} holds values that are not finite."]
    if values.max(initial=0) > largest:
        return [f"{name} holds {values.max():.3g}; at most {largest:g} is plausible."]
    return []


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.shape} {value.dtype}"
    return "none" if value is None else type(value).__name__
