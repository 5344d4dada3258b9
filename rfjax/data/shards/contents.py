# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the contents of one record, or of the empty caption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from rfjax.data.manifest import EncoderSpec, Manifest

# Latents have variance 1, and no text encoder that is in use comes near the second.
LARGEST_LATENT = 1e3
LARGEST_TEXT_STATE = 1e5


def problems_of_record(record: Mapping[str, Any], manifest: Manifest) -> list[str]:
    """What is wrong with a record, one sentence each.

    Args:
      record: as `RecordSource` decodes it.
      manifest: of its data set.
    """
    problems = _problems_of_array(
        record, "latents", manifest.latent_shape, largest=LARGEST_LATENT
    )
    try:
        record["caption"].decode()
    except (KeyError, UnicodeDecodeError):
        problems.append("caption is not UTF-8 text.")
    try:
        json.loads(record["annotation"] or b"null")
    except (KeyError, ValueError):
        problems.append("annotation is neither empty nor JSON.")
    padded = manifest.text.layout == "padded"
    return problems + problems_of_text(record, manifest, padded=padded)


def problems_of_text(
    features: Mapping[str, Any], manifest: Manifest, *, padded: bool
) -> list[str]:
    """What is wrong with the text states of a record or of the empty caption.

    Args:
      features: name -> array.
      manifest: of the data set.
      padded: whether contexts have all their tokens, or those before the pads only.
    """
    problems = []
    for encoder in manifest.text.encoders:
        problems += _problems_of_encoder(features, encoder, padded=padded)
    return problems


def _problems_of_encoder(
    features: Mapping[str, Any], encoder: EncoderSpec, *, padded: bool
) -> list[str]:
    name = f"{encoder.prefix}context_length"
    stored = np.asarray(features.get(name, np.nan))
    if stored.shape != () or not np.issubdtype(stored.dtype, np.integer):
        return [f"{name} must be a whole number, got {_describe(features.get(name))}."]
    problems, length = [], int(stored)
    if not 1 <= length <= encoder.length:
        problems.append(f"{name} is {length}, outside 1..{encoder.length}.")
    rows = encoder.length if padded else length
    for part, shape in (
        ("context", (rows, encoder.context_dim)),
        ("pooled", (encoder.pooled_dim,)),
    ):
        problems += _problems_of_array(
            features, f"{encoder.prefix}{part}", shape, largest=LARGEST_TEXT_STATE
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
