# SPDX-License-Identifier: Apache-2.0
"""Synthetic data: learnable random latents without any file, for tests and debugging.

Each example belongs to one of a few classes. Its latents are the smooth pattern of its
class plus a little noise of its own; its text states name the class. A model that reads
the text therefore reaches a much lower loss than one that does not. The streams are the
ones of `rfjax.data.pipeline`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from rfjax.data import pipeline, shards
from rfjax.errors import UserError
from rfjax.types import Batch

# Share of the variance that the class explains; the rest is an example's own.
_CLASS_VARIANCE = 0.9


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """Shapes and size of a synthetic data set, and how it is read.

    Attributes:
      latent_shape: (H, W, C).
      context_shape: (T, context_dim).
      pooled_dim: width of the pooled vector.
      num_classes: number of distinct patterns.
      num_train: examples before the training stream repeats.
      num_validation: held-out examples.
      data_seed: decides patterns and noise.
      caption_dropout: as in `DataConfig`, like all that follow.
      context_mask: see `DataConfig`.
      latents_dtype: see `DataConfig`.
      shuffle_seed: see `DataConfig`.
      read_threads: see `DataConfig`.
      prefetch_batches: see `DataConfig`.
    """

    latent_shape: tuple[int, int, int] = (8, 8, 16)
    context_shape: tuple[int, int] = (12, 32)
    pooled_dim: int = 32
    num_classes: int = 8
    num_train: int = 4096
    num_validation: int = 64
    data_seed: int = 0
    caption_dropout: float = 0.1
    context_mask: bool = False
    latents_dtype: str = "float32"
    shuffle_seed: int | None = None
    read_threads: int = 1
    prefetch_batches: int = 2

    def __post_init__(self):
        pipeline.check_reading_fields(self)
        for name in ("num_classes", "num_train", "num_validation", "pooled_dim"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"data.{name} must be at least 1, got {getattr(self, name)}."
                )
        for name, rank in (("latent_shape", 3), ("context_shape", 2)):
            shape = tuple(getattr(self, name))
            if len(shape) != rank or min(shape) < 1:
                raise UserError(
                    f"data.{name} must be {rank} positive numbers, got {shape}."
                )


def make_train_stream(
    config: SyntheticConfig,
    *,
    global_batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> pipeline.TrainStream:
    """As `pipeline.make_train_stream`, without files."""
    source = SyntheticSource(config, split="train")
    return pipeline.stream_from_source(
        source,
        manifest=source.manifest,
        empty_caption=source.empty_caption,
        config=config,
        global_batch_size=global_batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )


def validation_batches(
    config: SyntheticConfig,
    *,
    batch_size: int,
    num_samples: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """As `pipeline.validation_batches`, without files."""
    source = SyntheticSource(config, split="validation")
    return pipeline.batches_from_source(
        source,
        manifest=source.manifest,
        config=config,
        batch_size=batch_size,
        num_samples=num_samples,
        process_index=process_index,
        process_count=process_count,
    )


def read_manifest(config: SyntheticConfig) -> shards.Manifest:
    """Returns the manifest that such a data set would have on disk."""
    length, context_dim = config.context_shape
    encoder = shards.EncoderSpec(
        name="synthetic",
        kind="synthetic",
        context_dim=context_dim,
        length=length,
        pooled_dim=config.pooled_dim,
    )
    return shards.Manifest(
        name="synthetic",
        grade="synthetic",
        splits={"train": config.num_train, "validation": config.num_validation},
        latent=shards.LatentSpec(shape=tuple(config.latent_shape), codec="none"),
        text=shards.TextSpec(encoders=(encoder,)),
        creation=dataclasses.asdict(config),
    )


class SyntheticSource:
    """Records computed from their index: `source[i]` is the same at any time."""

    def __init__(self, config: SyntheticConfig, *, split: str):
        self.manifest = read_manifest(config)
        self._length = self.manifest.splits[split]
        # Validation examples are other draws from the same classes.
        self._seed = (config.data_seed, sorted(self.manifest.splits).index(split))
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
            **self._text(label),
        }

    @property
    def empty_caption(self) -> dict[str, np.ndarray]:
        """The text features that stand for no caption."""
        return self._text(-1)

    def _text(self, label: int) -> dict[str, np.ndarray]:
        return {
            "context": self._context[label],
            "context_length": np.int32(self._context.shape[1]),
            "pooled": self._pooled[label],
        }


def _smooth_patterns(rng, num_classes, shape) -> np.ndarray:
    """Plane waves in each channel: [num_classes, H, W, C], mean 0 and variance 1."""
    height, width, channels = shape
    rows = np.arange(height)[None, :, None, None] / height
    columns = np.arange(width)[None, None, :, None] / width
    size = (num_classes, 1, 1, channels)
    waves = rng.integers(1, 3, size) * rows + rng.integers(-2, 3, size) * columns
    patterns = np.sin(2 * np.pi * (waves + rng.random(size)))
    return (patterns - patterns.mean()) / patterns.std()
