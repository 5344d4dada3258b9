# SPDX-License-Identifier: Apache-2.0
"""What is encoded, and how: the contents of a file in configs/data."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from rfjax import schema
from rfjax.data.buckets import BucketConfig
from rfjax.data.filters import FilterConfig
from rfjax.data.sources import SOURCES, SourceConfig
from rfjax.encoders.images import IMAGE_CODECS, ImageCodecConfig
from rfjax.encoders.text import TEXT_ENCODERS, TextEncoderConfig
from rfjax.errors import UserError
from rfjax.value_types import (
    Bounds,
    Fraction,
    OneOf,
    OpenFraction,
    PositiveInt,
    check_fields,
)

LAYOUTS = ("padded", "unpadded")


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """What is encoded, and how.

    Attributes:
      name: name of the TFDS data set; a Python identifier.
      source: pictures and captions.
      filters: which of them are left out.
      buckets: the sizes that pictures are brought to.
      codec: pictures to latents.
      text_encoders: captions to text states, each on its own.
      text_layout: "padded" keeps the pads' states; "unpadded" stores real tokens only.
      context_dim: width that text states are padded to with zeros on reading, as 4096
        for Stable Diffusion 3; the widest encoder's if absent.
      validation_fraction: share of the captions that are held out, chosen by hash, of a
        source that has no splits of its own.
      max_broken: share of the pictures that may be broken; they are left out.
      num_threads: that each process computes with; sums depend on it in their last
        bits, so it is part of what is encoded.
      batch_size: examples that are encoded at a time.
      records_per_shard: examples in a file, at most.
    """

    name: str
    source: SourceConfig = schema.one_of(SOURCES)
    filters: FilterConfig = FilterConfig()
    buckets: BucketConfig = BucketConfig()
    codec: ImageCodecConfig = schema.one_of(IMAGE_CODECS, default="patch_pca")
    text_encoders: tuple[TextEncoderConfig, ...] = schema.many_of(
        TEXT_ENCODERS, default=("minilm",)
    )
    text_layout: Annotated[str, OneOf(LAYOUTS)] = "padded"
    context_dim: PositiveInt | None = None
    validation_fraction: OpenFraction = 0.02
    max_broken: Fraction = schema.changeable(0.01)
    num_threads: Annotated[int, Bounds(1, 1024)] = 1
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
        self.latent_shapes()  # raises unless sizes, buckets and codec fit

    @property
    def square(self) -> tuple[int, int]:
        """The size of a square picture, (H, W) in pixels."""
        return self.source.image_size, self.source.image_size

    def latent_shapes(self) -> dict[tuple[int, int], tuple[int, int, int]]:
        """The size of each bucket, (H, W) in pixels -> (h, w, C) of its latents.

        Raises:
          UserError: the codec cannot encode pictures of such a size.
        """
        sizes = {self.square, *self.buckets.sizes(self.source.image_size)}
        return {size: self.codec.latent_shape(*size) for size in sorted(sizes)}

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
