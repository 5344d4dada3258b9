# SPDX-License-Identifier: Apache-2.0
"""Whether stored text states are those of the encoder that the manifest names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rfjax.data.manifest import EncoderSpec, Manifest
from rfjax.encoders.text import TEXT_ENCODERS, EncodedText, make_text_encoder
from rfjax.errors import MissingPackageError, UserError

# One rounding to bfloat16, and what another machine's sums may add to it.
_RTOL = 2.0**-6


def compare_states(
    manifest: Manifest, examples: Sequence[tuple[str, str, Mapping[str, Any]]]
) -> tuple[list[str], list[str]]:
    """Encodes some captions again, and compares the result with what is stored.

    Args:
      manifest: of the data set.
      examples: (what it is, its caption, the features stored of it).

    Returns:
      What is wrong, and what could not be compared, one sentence each.
    """
    problems, notes = [], []
    for encoder in manifest.text.encoders:
        if encoder.kind not in TEXT_ENCODERS:
            notes.append(
                f"states of {encoder.name} are not compared: its kind "
                f"{encoder.kind!r} is none of {', '.join(TEXT_ENCODERS)}."
            )
            continue
        try:
            problems += _compare(encoder, examples)
        except MissingPackageError as error:
            notes.append(f"states of {encoder.name} are not compared: {error}")
        except UserError as error:
            problems.append(f"captions cannot be encoded by {encoder.name}: {error}")
    return problems, notes


def _compare(
    encoder: EncoderSpec, examples: Sequence[tuple[str, str, Mapping[str, Any]]]
) -> list[str]:
    made = make_text_encoder(encoder.kind, length=encoder.length)
    dims = {"context_dim": made.context_dim, "pooled_dim": made.pooled_dim}
    problems = [
        f"{name} of text encoder {encoder.name} must be {dim}, which {encoder.kind} "
        f"makes, got {getattr(encoder, name)}."
        for name, dim in dims.items()
        if getattr(encoder, name) != dim
    ]
    if problems:
        return problems
    text = made.encode([caption for _, caption, _ in examples])
    return [
        f"{where}: text states are not what {encoder.kind} makes of {caption!r}."
        for row, (where, caption, features) in enumerate(examples)
        if not _equal(text, row, features, prefix=encoder.prefix)
    ]


def _equal(
    text: EncodedText, row: int, features: Mapping[str, Any], *, prefix: str
) -> bool:
    """Whether the stored states are those of a row, but for rounding."""
    length = int(features[f"{prefix}context_length"])
    context = np.asarray(features[f"{prefix}context"], np.float32)
    pooled = np.asarray(features[f"{prefix}pooled"], np.float32)
    return (
        length == text.context_length[row]
        and _close(context[:length], text.context[row][:length])
        and _close(pooled, text.pooled[row])
    )


def _close(stored: np.ndarray, made: np.ndarray) -> bool:
    """Whether two arrays are equal up to a fraction of their typical size."""
    size = np.sqrt(np.mean(np.square(made)))
    return np.allclose(stored, made, rtol=_RTOL, atol=_RTOL * size)
