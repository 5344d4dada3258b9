# SPDX-License-Identifier: Apache-2.0
"""What a data set is, as rfjax.json has it: shapes, encoders, counts, checksums."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from rfjax import schema, whole_files
from rfjax.errors import UserError
from rfjax.value_types import NaturalInt, PositiveInt

FORMAT_VERSION = 1
MANIFEST_FILE = "rfjax.json"
NO_CODEC = "none"  # of latents that never were pictures

# The same in every data set of this version: written for readers other than rfjax.
_CONSTANTS = {
    # A scale and a shift are the codec's own, which has applied them.
    "latent": {"scale": 1.0, "shift": 0.0, "layout": "HWC", "dtype": "bfloat16"},
    # The encoder itself received the padding mask.
    "text": {"mask": True},
}


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """What the stored latents are.

    Attributes:
      shape: (H, W, C) of one example.
      codec: kind of the codec that made them, a key of
        `rfjax.encoders.images.IMAGE_CODECS`, or "none" if they never were pictures.
      codec_scale: `scaling_factor` of the codec, which has applied it; None: it has
        none. Latents are (what the autoencoder gives - codec_shift) * codec_scale.
      codec_shift: its `shift_factor`, likewise.
    """

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    codec: str
    codec_scale: float | None = None
    codec_shift: float | None = None


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """One text encoder's features in each record.

    The features are `{prefix}context` [length, context_dim], `{prefix}context_length`
    and `{prefix}pooled` [pooled_dim]. With several encoders each has its own prefix.

    Attributes:
      name: free name, unique in the data set.
      kind: key of `rfjax.encoders.text.TEXT_ENCODERS`.
      context_dim: width of the token states.
      length: number of tokens T that a context is padded to.
      pooled_dim: width of the pooled vector.
      prefix: what the feature names start with.
    """

    name: str
    kind: str
    context_dim: PositiveInt
    length: PositiveInt
    pooled_dim: PositiveInt
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """How captions are stored.

    Attributes:
      encoders: one entry for each text encoder.
      layout: "padded" stores all T tokens, pads as the encoder returned them;
        "unpadded" stores the real tokens only, and zeros are appended on reading.
    """

    encoders: tuple[EncoderSpec, ...]
    layout: str = "padded"


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file of the data set, by its path relative to the root.

    `split` and `num_records` are set for shards, and empty for other files.
    """

    path: str
    num_bytes: int
    sha256: str
    split: str = ""
    num_records: int = 0


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of rfjax.json.

    Attributes:
      name: name of the TFDS data set.
      grade: kind of the source it was made from, e.g. "emoji".
      splits: split name -> number of examples.
      latent: the stored latents.
      text: the stored text states.
      files: every file with its size and SHA-256.
      licence: the notice that goes wherever the data goes.
      creation: the options it was made with.
      version: of this format.
    """

    name: str
    grade: str
    splits: Mapping[str, NaturalInt]
    latent: LatentSpec
    text: TextSpec
    files: tuple[StoredFile, ...] = ()
    licence: str = ""
    creation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    version: int = FORMAT_VERSION

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one example's latents."""
        return self.latent.shape

    @property
    def context_shape(self) -> tuple[int, int]:
        """(T, context_dim) of one example's context."""
        encoder = only_encoder(self)
        return encoder.length, encoder.context_dim

    @property
    def pooled_dim(self) -> int:
        """Width of one example's pooled vector."""
        return only_encoder(self).pooled_dim

    def to_json(self) -> str:
        """Returns the text of rfjax.json; its hash names the data a run was made on."""
        fields = dataclasses.asdict(self)
        for name in ("codec_scale", "codec_shift"):
            if fields["latent"][name] is None:  # as older data sets are hashed
                del fields["latent"][name]
        for section, constants in _CONSTANTS.items():
            fields[section] |= constants
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(
        cls, text: bytes | str, *, path: str | os.PathLike = MANIFEST_FILE
    ) -> Manifest:
        """Parses the text of rfjax.json; `path` only appears in error messages.

        Raises:
          UserError: not JSON, of another version, or with fields missing or unknown.
        """
        remedy = "restore it from a copy, or encode the data set again."
        fields = whole_files.parse_json(text, what=str(path))
        if fields.get("version") != FORMAT_VERSION:
            raise UserError(
                f"version of {path} must be {FORMAT_VERSION}, got "
                f"{fields.get('version')!r}; {remedy}"
            )
        for section, constants in _CONSTANTS.items():
            values = fields.get(section)
            for name, value in constants.items() if isinstance(values, dict) else ():
                found = values.pop(name, value)
                if found != value:
                    raise UserError(
                        f"{section}.{name} of {path} must be {value!r}, got "
                        f"{found!r}; {remedy}"
                    )
        try:
            manifest = schema.build(cls, fields)
        except UserError as error:
            raise UserError(
                f"{path} must have the fields of a manifest: {error} Or {remedy}"
            ) from error
        _check_paths(path, manifest.name, manifest.files)
        return manifest


def _check_paths(
    path: str | os.PathLike, name: str, files: Sequence[StoredFile]
) -> None:
    """Raises UserError unless a manifest names files inside of its own folder."""
    if not name.isidentifier():
        raise UserError(
            f"name of {path} must be a Python identifier, got {name!r}; correct it."
        )
    for file in files:
        inside = PurePosixPath(file.path)
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(
                f"files of {path} must lie in its folder, got {file.path!r}; get the "
                "data set from where it was made."
            )


def only_encoder(manifest: Manifest) -> EncoderSpec:
    """Returns the text encoder of a data set that has one.

    Raises:
      UserError: it has several.
    """
    encoders = manifest.text.encoders
    if len(encoders) != 1:
        raise UserError(
            f"text.encoders of data set {manifest.name} must hold one encoder, got "
            f"{len(encoders)}; joining the contexts of several is not supported yet."
        )
    return encoders[0]
