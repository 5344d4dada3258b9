# SPDX-License-Identifier: Apache-2.0
"""What a data set is, as rfjax.json has it: shapes, encoders, counts, checksums."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any

from rfjax import schema, whole_files
from rfjax.errors import UserError
from rfjax.value_types import NaturalInt, OneOf, PositiveInt

FORMAT_VERSION = 1
MANIFEST_FILE = "rfjax.json"
NO_CODEC = "none"  # of latents that never were pictures

# The same in every data set of this version: written for readers other than rfjax.
_CONSTANTS = {
    # A scale and a shift are the codec's own, which has applied them.
    "latent": {"scale": 1.0, "shift": 0.0, "layout": "HWC", "dtype": "bfloat16"},
    # Encoders receive the padding mask, unless their own entry says otherwise.
    "text": {"mask": True},
}

# Where an encoder's states go in the joined context; see `rfjax.data.conditioning`.
JOINED = ("tokens", "channels")


def _since(default: Any) -> Any:
    """A field that older data sets lack: not written, so not hashed, at its default."""
    return dataclasses.field(default=default, metadata={"omitted": True})


@dataclasses.dataclass(frozen=True)
class LatentSpec:
    """What the stored latents are.

    Attributes:
      shape: (H, W, C) of one example; of a square one, if there are several buckets.
      codec: kind of the codec that made them, a key of
        `rfjax.encoders.images.IMAGE_CODECS`, or "none" if they never were pictures.
      codec_scale: `scaling_factor` of the codec, which has applied it; None: it has
        none. Latents are (what the autoencoder gives - codec_shift) * codec_scale.
      codec_shift: its `shift_factor`, likewise.
      codec_weights: digest of its weights; empty if codec.npz holds them.
      has_variance: whether latents are the mean of a posterior whose "log_variance",
        of the scaled latents, is stored beside them.
      buckets: (H, W) of each bucket, if there are several; that of `shape` among them.
    """

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    codec: str
    codec_scale: float | None = _since(None)
    codec_shift: float | None = _since(None)
    codec_weights: str = _since("")
    has_variance: bool = _since(False)
    buckets: tuple[tuple[PositiveInt, PositiveInt], ...] = _since(())

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(H, W, C) of every bucket, in the order of records."""
        height, width, channels = self.shape
        return tuple((h, w, channels) for h, w in self.buckets or ((height, width),))


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """One text encoder's features in each record.

    The features are `{prefix}context` [length, context_dim], `{prefix}context_length`
    and `{prefix}pooled` [pooled_dim]; one that would be empty is left out. With several
    encoders each has its own prefix.

    Attributes:
      name: free name, unique in the data set.
      kind: key of `rfjax.encoders.text.TEXT_ENCODERS`.
      context_dim: width of the token states; 0 if only the pooled vector is kept.
      length: number of tokens T that a context is padded to.
      pooled_dim: width of the pooled vector; 0 if there is none.
      prefix: what the feature names start with.
      joined: where its states go in the context of a batch: "tokens" appends them after
        those of the encoders before it; "channels" puts them beside each other.
      mask: whether the encoder itself received the padding mask.
      fields: further fields of its config, such as the path of its weights.
      weights: digest of the weights and the tokenizer; empty if its kind says them.
    """

    name: str
    kind: str
    context_dim: NaturalInt
    length: PositiveInt
    pooled_dim: NaturalInt
    prefix: str = ""
    joined: Annotated[str, OneOf(JOINED)] = _since("tokens")
    mask: bool = _since(True)
    fields: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, metadata={"omitted": True}
    )
    weights: str = _since("")


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """How captions are stored.

    Attributes:
      encoders: one entry for each text encoder.
      layout: "padded" stores all T tokens, pads as the encoder returned them;
        "unpadded" stores the real tokens only, and zeros are appended on reading.
      captions: names of the captions of a record, if it may have several.
      context_dim: width that states are padded to with zeros; None: the widest.
    """

    encoders: tuple[EncoderSpec, ...]
    layout: str = "padded"
    captions: tuple[str, ...] = _since(())
    context_dim: PositiveInt | None = _since(None)

    def __post_init__(self):
        channels = [e for e in self.encoders if e.joined == "channels"]
        if len({encoder.length for encoder in channels if encoder.context_dim}) > 1:
            raise UserError(
                "text encoders joined on channels must have the same length, got "
                f"{', '.join(f'{e.name} {e.length}' for e in channels)}; give them one "
                "length, or join them on tokens."
            )
        widest = self._widest()
        if self.context_dim is not None and self.context_dim < widest:
            raise UserError(
                f"text.context_dim must be at least {widest}, the widest of the "
                f"contexts, got {self.context_dim}; leave it out to take that."
            )

    @property
    def blocks(self) -> tuple[tuple[EncoderSpec, ...], ...]:
        """The blocks of tokens of a context, each with the encoders beside each other.

        Those joined on channels come first, then each of the others.
        """
        own = [e for e in self.encoders if e.context_dim]
        first = tuple(e for e in own if e.joined == "channels")
        others = tuple((e,) for e in own if e.joined == "tokens")
        return ((first,) if first else ()) + others

    @property
    def context_shape(self) -> tuple[int, int]:
        """(T, context_dim) of the joined context."""
        length = sum(block[0].length for block in self.blocks)
        return length, self.context_dim or self._widest()

    def _widest(self) -> int:
        widths = (sum(e.context_dim for e in block) for block in self.blocks)
        return max(widths, default=0)


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file of the data set, by its path relative to the root.

    `split` and `num_records` are set for shards, and empty for other files; `bucket` is
    the (H, W) of a shard's latents if the data set has several buckets.
    """

    path: str
    num_bytes: int
    sha256: str
    split: str = ""
    num_records: int = 0
    bucket: tuple[PositiveInt, PositiveInt] | None = _since(None)


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
      licences: licence -> number of examples under it, where the source says so;
        credits.csv beside it names the author of each.
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
    licences: Mapping[str, NaturalInt] = dataclasses.field(
        default_factory=dict, metadata={"omitted": True}
    )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one example's latents."""
        return self.latent.shape

    @property
    def context_shape(self) -> tuple[int, int]:
        """(T, context_dim) of one example's context: all encoders joined."""
        return self.text.context_shape

    @property
    def pooled_dim(self) -> int:
        """Width of one example's pooled vector: all encoders joined."""
        return sum(encoder.pooled_dim for encoder in self.text.encoders)

    def feature(self, caption: int, encoder: EncoderSpec, part: str) -> str:
        """Name of a feature of a record.

        Args:
          caption: number of the caption, in the order of `text.captions`.
          encoder: one of `text.encoders`.
          part: "context", "context_length" or "pooled".
        """
        return f"{self.caption_prefix(caption)}{encoder.prefix}{part}"

    def caption_prefix(self, caption: int) -> str:
        """What the features of a record's caption begin with; empty for the first."""
        return f"{self.text.captions[caption]}_" if caption else ""

    def to_json(self) -> str:
        """Returns the text of rfjax.json; its hash names the data a run was made on."""
        fields = _stored(self)
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


def _stored(value: Any) -> Any:
    """A manifest as plain values, without what older data sets lack."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: _stored(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not _is_omitted(field, getattr(value, field.name))
        }
    if isinstance(value, list | tuple):
        return [_stored(element) for element in value]
    return dict(value) if isinstance(value, Mapping) else value


def _is_omitted(field: dataclasses.Field, value: Any) -> bool:
    is_default = value == field.default or (
        field.default is dataclasses.MISSING and not value
    )
    return bool(field.metadata.get("omitted")) and is_default


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
