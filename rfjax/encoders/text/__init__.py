# SPDX-License-Identifier: Apache-2.0
"""Text encoders: one file per encoder, and the table of them all."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rfjax.encoders import torch_weights
from rfjax.encoders.text.base import EncodedText, TextEncoder, TextEncoderConfig
from rfjax.encoders.text.clip import CLIPConfig
from rfjax.encoders.text.cut_captions import CutCaptions
from rfjax.encoders.text.minilm import MiniLMConfig
from rfjax.encoders.text.t5 import T5Config
from rfjax.encoders.text.unknown_words import UnknownWords
from rfjax.errors import UserError

__all__ = [
    "TEXT_ENCODERS",
    "CutCaptions",
    "EncodedText",
    "TextEncoder",
    "TextEncoderConfig",
    "UnknownWords",
    "make_text_encoder",
]

# `kind` in `text_encoders` of an encode config or a manifest -> the other fields.
TEXT_ENCODERS: dict[str, type[TextEncoderConfig]] = {
    "minilm": MiniLMConfig,
    "clip": CLIPConfig,
    "t5": T5Config,
}

_NO_FIELDS: Mapping[str, Any] = MappingProxyType({})


def make_text_encoder(
    kind: str,
    *,
    length: int,
    name: str = "",
    fields: Mapping[str, Any] = _NO_FIELDS,
    weights: str = "",
    folders: Sequence[str] = (),
) -> TextEncoder:
    """Returns the encoder of an existing data set.

    Args:
      kind: as the manifest says it (`text.encoders`).
      length: tokens T that every caption is padded to, from there too.
      name: that it has in the data set, for errors; its kind, if empty.
      fields: further fields of its config, from there too; a device that was a GPU or
        TPU is what this machine has.
      weights: digest of its weights, from there too; empty: any will do.
      folders: where its weights may be now, if its `path` is not there any more; they
        are tried first, in order.

    Raises:
      UserError: no such kind, or only an encoder with other weights.
      MissingFileError: its weights are not found.
      MissingPackageError: a package or the weights are not installed.
    """
    if kind not in TEXT_ENCODERS:
        raise UserError(
            f"text encoder must be one of {sorted(TEXT_ENCODERS)}, got {kind!r}."
        )
    _check_fields(kind, fields)
    if name and any(f.name == "name" for f in dataclasses.fields(TEXT_ENCODERS[kind])):
        fields = {**fields, "name": name}
    if "device" in fields:
        here = torch_weights.device_elsewhere(fields["device"])
        fields = {**fields, "device": here}
    config = TEXT_ENCODERS[kind](length=length, **fields)
    if "path" not in fields:
        return config.make()
    return torch_weights.make_with(
        weights,
        lambda path: dataclasses.replace(config, path=path).make(),
        (*folders, fields["path"]),
        what=f"text encoder {name or kind}",
    )


def _check_fields(kind: str, fields: Mapping[str, Any]) -> None:
    """Raises unless they are the fields of a kind's config, with all that it needs."""
    known = {field.name: field for field in dataclasses.fields(TEXT_ENCODERS[kind])}
    needed = {n for n, f in known.items() if f.default is dataclasses.MISSING}
    if not needed <= set(fields) <= set(known):
        raise UserError(
            f"fields of text encoder {kind} must be among {', '.join(known)}, with "
            f"{', '.join(needed) or 'none'} at least, got "
            f"{', '.join(fields) or 'none'}; read the data with the version of rfjax "
            "that encoded it."
        )
