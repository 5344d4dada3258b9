# SPDX-License-Identifier: Apache-2.0
"""Synthetic data: learnable random latents without any file, for tests and debugging.

Each example belongs to one of a few classes. Its latents are the smooth pattern of its
class plus a little noise of its own; its text states identify the class. A model that
reads the text therefore reaches a much lower loss than one that does not. The streams
are the ones of `rfjax.data.pipeline`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from rfjax import schema
from rfjax.data.base import Dataset
from rfjax.data.manifest import NO_CODEC, EncoderSpec, LatentSpec, Manifest, TextSpec
from rfjax.errors import UserError
from rfjax.value_types import BatchCount, PositiveInt, Seed, Size, ThreadCount

# Share of the variance that the class explains; the rest is an example's own.
_CLASS_VARIANCE = 0.9
# How data is read, as it was written into the manifests of the first runs.
_HASHED_READING = {
    "caption_dropout": 0.1,
    "context_mask": False,
    "latents_dtype": "float32",
    "shuffle_seed": None,
    "read_threads": 1,
    "prefetch_batches": 2,
}
_MOST_NUMBERS = 2**27  # of the patterns of all classes; 1 GB while they are made


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticConfig(Dataset):
    """Shapes and size of a synthetic data set.

    Attributes:
      latent_shape: (H, W, C).
      context_shape: (T, context_dim).
      pooled_dim: width of the pooled vector.
      num_classes: number of distinct patterns.
      num_train: examples before the training stream repeats.
      num_validation: held-out examples.
      data_seed: decides patterns and noise.
      read_threads: see `Reading`; one keeps up with any model.
      prefetch_batches: see `Reading`.
    """

    latent_shape: tuple[Size, Size, Size] = (8, 8, 16)
    context_shape: tuple[Size, Size] = (12, 32)
    pooled_dim: Size = 32
    num_classes: Size = 8
    num_train: PositiveInt = 4096
    num_validation: PositiveInt = 64
    data_seed: Seed = 0
    read_threads: ThreadCount = schema.changeable(1)
    prefetch_batches: BatchCount = schema.changeable(2)

    def __post_init__(self):
        super().__post_init__()
        for name, rank in (("latent_shape", 3), ("context_shape", 2)):
            shape = tuple(getattr(self, name))
            if len(shape) != rank:
                raise UserError(
                    f"data.{name} must be {rank} numbers, got {shape}; the defaults "
                    "show which."
                )

        largest = max(math.prod(self.latent_shape), math.prod(self.context_shape))
        if self.num_classes * largest > _MOST_NUMBERS:
            raise UserError(
                f"data.num_classes must be at most {_MOST_NUMBERS // largest:,} for "
                f"latents {list(self.latent_shape)} and context "
                f"{list(self.context_shape)}, whose patterns are kept in memory, got "
                f"{self.num_classes}; choose fewer or smaller ones."
            )

    def manifest(self) -> Manifest:
        """Returns the manifest that such a data set would have on disk."""
        length, context_dim = self.context_shape
        encoder = EncoderSpec(
            name="synthetic",
            kind="synthetic",
            context_dim=context_dim,
            length=length,
            pooled_dim=self.pooled_dim,
        )
        return Manifest(
            name="synthetic",
            grade="synthetic",
            splits={"train": self.num_train, "validation": self.num_validation},
            latent=LatentSpec(shape=tuple(self.latent_shape), codec=NO_CODEC),
            text=TextSpec(encoders=(encoder,)),
            creation=self._creation(),
        )

    def records(self, split: str) -> SyntheticRecords:
        """The records of a split; nothing is computed yet."""
        return SyntheticRecords(self, split=split)

    def empty_caption(self) -> dict[str, np.ndarray]:
        """The text features that stand for no caption."""
        return SyntheticRecords(self, split="train").text(-1)

    def _creation(self) -> dict[str, Any]:
        """The fields that say what the data is; runs know it by a hash of them.

        How it is read is no part of that. The first of those fields stand last, at
        their defaults, because the hashes of older runs were made with them.
        """
        shared = {field.name for field in dataclasses.fields(Dataset)}
        values = dataclasses.asdict(self)
        own = {name: value for name, value in values.items() if name not in shared}
        return own | _HASHED_READING


class SyntheticRecords(Sequence):
    """Records computed from their index: `source[i]` is the same at any time."""

    def __init__(self, config: SyntheticConfig, *, split: str):
        splits = config.manifest().splits
        self._length = splits[split]
        # Validation examples are other draws from the same classes.
        self._seed = (config.data_seed, sorted(splits).index(split))
        rng = np.random.default_rng(config.data_seed)
        self._patterns = _smooth_patterns(
            rng, config.num_classes, tuple(config.latent_shape)
        )
        # The last row of each table is the empty caption.
        num_captions = config.num_classes + 1
        shape = (num_captions, *config.context_shape)
        self._context = rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
        shape = (num_captions, config.pooled_dim)
        self._pooled = rng.standard_normal(shape).astype(ml_dtypes.bfloat16)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray | bytes]:
        if not 0 <= index < self._length:
            raise IndexError(index)
        rng = np.random.default_rng((*self._seed, index))
        label = int(rng.integers(len(self._patterns)))
        pattern = self._patterns[label]
        own = rng.standard_normal(pattern.shape)
        latents = (
            np.sqrt(_CLASS_VARIANCE) * pattern + np.sqrt(1 - _CLASS_VARIANCE) * own
        )
        return {
            "latents": latents.astype(ml_dtypes.bfloat16),
            "caption": f"pattern {label}".encode(),
            "annotation": b"",
            **self.text(label),
        }

    def text(self, label: int) -> dict[str, np.ndarray]:
        """The text features of a class; -1 is the empty caption."""
        return {
            "context": self._context[label],
            "context_length": np.int32(self._context.shape[1]),
            "pooled": self._pooled[label],
        }


def _smooth_patterns(
    rng: np.random.Generator, num_classes: int, shape: tuple[int, int, int]
) -> np.ndarray:
    """Plane waves in each channel: [num_classes, H, W, C], mean 0 and variance 1."""
    height, width, channels = shape
    rows = np.arange(height)[None, :, None, None] / height
    columns = np.arange(width)[None, None, :, None] / width
    size = (num_classes, 1, 1, channels)
    waves = rng.integers(1, 3, size) * rows + rng.integers(-2, 3, size) * columns
    patterns = np.sin(2 * np.pi * (waves + rng.random(size)))
    return (patterns - patterns.mean()) / patterns.std()
