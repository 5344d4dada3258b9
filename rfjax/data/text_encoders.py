# SPDX-License-Identifier: Apache-2.0
"""The text encoders of an encoded data set, made again."""

from __future__ import annotations

from collections.abc import Sequence

from rfjax.data.manifest import EncoderSpec
from rfjax.encoders.text import TextEncoder, make_text_encoder


def open_text_encoder(
    encoder: EncoderSpec, *, folders: Sequence[str] = ()
) -> TextEncoder:
    """Makes a text encoder as it was when the data set was encoded.

    Args:
      encoder: what the manifest says of it.
      folders: where its weights may be now; tried before the path in the manifest.

    Raises:
      MissingPackageError: a package is not installed.
      MissingFileError: the weights are not found.
      UserError: only others are, or there is no such kind.
    """
    return make_text_encoder(
        encoder.kind,
        length=encoder.length,
        name=encoder.name,
        fields=encoder.fields,
        weights=encoder.weights,
        folders=folders,
    )
