# SPDX-License-Identifier: Apache-2.0
"""What is encoded, and how: the contents of a file in configs/data."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from rfjax import schema
from rfjax.data.sources import SOURCES, SourceConfig
from rfjax.encoders.images import IMAGE_CODECS, ImageCodecConfig
from rfjax.encoders.text import TEXT_ENCODERS, TextEncoderConfig
from rfjax.errors import UserError
from rfjax.value_types import Fraction, OneOf, OpenFraction, PositiveInt, check_fields

LAYOUTS = ("padded", "unpadded")


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """What is encoded, and how.

    Attributes:
      name: name of the TFDS data set; a Python identifier.
      source: pictures and captions.
      codec: pictures to latents.
      text_encoders: captions to text states, each on its own.
      text_layout: "padded" keeps the pads' states; "unpadded" stores real tokens only.
      context_dim: width that text states are padded to with zeros on reading, as 4096
        for Stable Diffusion 3; the widest encoder's if absent.
      validation_fraction: share of the captions that are held out, chosen by hash, of a
        source that has no splits of its own.
      max_broken: share of the pictures that may be broken; they are left out.
      batch_size: examples that are encoded at a time.
      records_per_shard: examples in a file, at most.
    """

    name: str
    source: SourceConfig = schema.one_of(SOURCES)
    codec: ImageCodecConfig = schema.one_of(IMAGE_CODECS, default="patch_pca")
    text_encoders: tuple[TextEncoderConfig, ...] = schema.many_of(
        TEXT_ENCODERS, default=("minilm",)
    )
    text_layout: Annotated[str, OneOf(LAYOUTS)] = "padded"
    context_dim: PositiveInt | None = None
    validation_fraction: OpenFraction = 0.02
    max_broken: Fraction = 0.01
    batch_size: PositiveInt = 256
    records_per_shard: PositiveInt = 1024

    def __post_init__(self):
        check_fields(self)
        if not self.name.isidentifier():
            raise UserError(
                f"name must be a Python identifier, got {self.name!r}; use letters, "
                "digits and underscores."
            )
        self._check_encoders()
        size = self.source.image_size
        self.codec.latent_shape(size, size)  # raises unless they fit

    @property
    def encoder_names(self) -> tuple[str, ...]:
        """The name of each text encoder: that of its config, or its kind."""
        kinds = schema.to_dict(self)["text_encoders"]
        return tuple(section.get("name") or section["kind"] for section in kinds)

    def _check_encoders(self) -> None:
        """Raises UserError unless there are text encoders with names of their own."""
        names = self.encoder_names
        if not names:
            raise UserError(
                "text_encoders must hold at least one of "
                f"{', '.join(TEXT_ENCODERS)}, got none; add one."
            )
        for name in names:
            if not name.isidentifier() or names.count(name) > 1:
                raise UserError(
                    "text_encoders must have names that differ and are Python "
                    f"identifiers, got {', '.join(names)}; set the field name of each."
                )
