# SPDX-License-Identifier: Apache-2.0
"""Whether stored text states are those of the encoder that the manifest names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rfjax.data.manifest import EncoderSpec, Manifest
from rfjax.data.text_encoders import open_text_encoder
from rfjax.encoders.text import TEXT_ENCODERS, EncodedText
from rfjax.errors import MissingFileError, MissingPackageError, UserError

# One rounding to bfloat16, and what another machine's sums may add to it.
_RTOL = 2.0**-6
# Of an encoder whose every layer rounds, in the order of another device.
_RTOL_BFLOAT16 = 2.0**-3


def compare_states(
    manifest: Manifest,
    examples: Sequence[tuple[str, str, Mapping[str, Any]]],
    *,
    folders: Sequence[str] = (),
) -> tuple[list[str], list[str]]:
    """Encodes some captions again, and compares the result with what is stored.

    Args:
      manifest: of the data set.
      examples: (what it is, its caption, the features stored of it).
      folders: where the weights of encoders may be now.

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
            problems += _compare(encoder, examples, folders)
        except (MissingPackageError, MissingFileError) as error:
            notes.append(f"states of {encoder.name} are not compared: {error}")
        except UserError as error:
            problems.append(f"captions cannot be encoded by {encoder.name}: {error}")
    return problems, notes


def _compare(
    encoder: EncoderSpec,
    examples: Sequence[tuple[str, str, Mapping[str, Any]]],
    folders: Sequence[str],
) -> list[str]:
    made = open_text_encoder(encoder, folders=folders)
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
        f"{where}: text states are not what {encoder.name} makes of {caption!r}."
        for row, (where, caption, features) in enumerate(examples)
        if not _equal(text, row, features, encoder)
    ]


def _equal(
    text: EncodedText, row: int, features: Mapping[str, Any], encoder: EncoderSpec
) -> bool:
    """Whether the stored states are those of a row, but for rounding."""
    rtol = _RTOL_BFLOAT16 if encoder.fields.get("dtype") == "bfloat16" else _RTOL
    if encoder.context_dim:
        length = int(features[f"{encoder.prefix}context_length"])
        if length != text.context_length[row]:
            return False
    for part, made in (("context", text.context[row]), ("pooled", text.pooled[row])):
        if made.shape[-1]:
            stored = np.asarray(features[f"{encoder.prefix}{part}"], np.float32)
            if not _close(stored, made[: len(stored)], rtol=rtol):
                return False
    return True


def _close(stored: np.ndarray, made: np.ndarray, *, rtol: float) -> bool:
    """Whether two arrays are equal up to a fraction of their typical size."""
    size = np.sqrt(np.mean(np.square(made)))
    return np.allclose(stored, made, rtol=rtol, atol=rtol * size)
