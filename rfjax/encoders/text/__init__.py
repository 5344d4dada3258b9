# SPDX-License-Identifier: Apache-2.0
"""Text encoders: one file per encoder, and the table of them all."""

from rfjax.encoders.text.base import EncodedText, TextEncoder, TextEncoderConfig
from rfjax.encoders.text.minilm import MiniLMConfig
from rfjax.encoders.text.unknown_words import UnknownWords
from rfjax.errors import UserError

__all__ = [
    "TEXT_ENCODERS",
    "EncodedText",
    "TextEncoder",
    "TextEncoderConfig",
    "UnknownWords",
    "make_text_encoder",
]

# `text_encoder.kind` of an encode config, or `kind` in a manifest -> the other fields.
TEXT_ENCODERS: dict[str, type[TextEncoderConfig]] = {"minilm": MiniLMConfig}


def make_text_encoder(kind: str, *, length: int) -> TextEncoder:
    """Returns the encoder of an existing data set.

    Args:
      kind: as the manifest says it (`text.encoders`).
      length: tokens T that every caption is padded to, from there too.

    Raises:
      UserError: no such kind.
      MissingPackageError: a package or the weights are not installed.
    """
    if kind not in TEXT_ENCODERS:
        raise UserError(
            f"text encoder must be one of {sorted(TEXT_ENCODERS)}, got {kind!r}."
        )
    return TEXT_ENCODERS[kind](length=length).make()
