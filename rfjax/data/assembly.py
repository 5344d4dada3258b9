# SPDX-License-Identifier: Apache-2.0
"""How records are written into the arrays of a batch.

A batch is allocated at once, and each record copied into its row straight from where
it was read. Latents that are stored as a posterior are sampled again at each position
of the stream, as the autoencoder's own class samples them:

  latents = mean + exp(log_variance / 2) * noise
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from rfjax.data.conditioning import (
    CaptionChoices,
    CaptionJoiner,
    caption_weights,
    copy_array,
)
from rfjax.data.manifest import Manifest
from rfjax.data.reading import LATENT_DTYPES, Reading, Records
from rfjax.types import Batch, Conditioning

# Keeps the noise of posteriors apart from any other use of the same seed.
_POSTERIOR_STREAM = 0x90573
# In place of a run's seed, which is smaller: validation is the same in all runs.
_VALIDATION_SEED = 2**32


class BatchAssembler:
    """Makes batches of records by number; may be called from several threads.

    Args:
      records: of a split.
      manifest: what they are.
      reading: how they become batches.
      empty_caption: the text features that stand for no caption; None if none is ever
        dropped.
      seed: decides dropout, captions and noise at each position.
    """

    def __init__(
        self,
        records: Records,
        *,
        manifest: Manifest,
        reading: Reading,
        empty_caption: Mapping[str, np.ndarray] | None,
        seed: int,
    ):
        self._records = records
        self._latents = ("latents", "log_variance")[: 1 + manifest.latent.has_variance]
        self._reading = reading
        self._empty_caption = empty_caption
        self._seed = seed
        self._joiner = CaptionJoiner(manifest)
        self._choices = CaptionChoices(
            seed=seed,
            caption_dropout=reading.caption_dropout,
            encoder_dropout=reading.encoder_dropout,
            weights=caption_weights(manifest.text, reading.caption_weights),
            num_encoders=len(manifest.text.encoders),
        )

    def __call__(self, numbers: Sequence[int], positions: Sequence[int]) -> Batch:
        """Reads B records of one bucket.

        Args:
          numbers: of the records.
          positions: of each row in the stream.
        """
        num_rows = len(numbers)
        captions = self._joiner.allocate(num_rows)
        # First, as noise is last: records evict all else from the processor's cache.
        drawn = [self._choices.draw(position) for position in positions]
        stored: dict[str, np.ndarray] = {}
        for row, number in enumerate(numbers):
            record = self._records[number]
            for name in self._latents:
                if not row:
                    shape = num_rows, *record[name].shape
                    stored[name] = np.empty(shape, ml_dtypes.bfloat16)
                copy_array(record[name], out=stored[name][row])
            self._write_caption(record, captions, row, drawn[row])
        latents = self._make_latents(positions, **stored)
        mask = captions["context_mask"] if self._reading.context_mask else None
        return Batch(
            latents=latents,
            conditioning=Conditioning(captions["context"], captions["pooled"], mask),
            sample_index=np.array([p % 2**32 for p in positions], np.uint32),
        )

    def _write_caption(
        self,
        record: Mapping[str, Any],
        captions: Mapping[str, np.ndarray],
        row: int,
        drawn: Sequence[float],
    ) -> None:
        choice = self._choices.choose(drawn, self._joiner.has_captions(record))
        self._joiner.write(
            self._empty_caption if choice.is_empty else record,
            captions,
            row,
            caption=0 if choice.is_empty else choice.caption,
            dropped=choice.dropped,
        )

    def _make_latents(
        self,
        positions: Sequence[int],
        *,
        latents: np.ndarray,
        log_variance: np.ndarray | None = None,
    ) -> np.ndarray:
        """Those of a batch: as stored, or samples."""
        dtype = LATENT_DTYPES[self._reading.latents_dtype]
        made = np.empty(latents.shape, dtype)
        if log_variance is None:
            copy_array(latents, out=made)
            return made
        for row, position in enumerate(positions):
            rng = np.random.default_rng((self._seed, _POSTERIOR_STREAM, position))
            sample_posterior(latents[row], log_variance[row], rng, out=made[row])
        return made


def validation_assembler(
    records: Records, *, manifest: Manifest, reading: Reading
) -> BatchAssembler:
    """What reads validation: without dropout, and the same in every run.

    The position of a record is its number.
    """
    return BatchAssembler(
        records,
        manifest=manifest,
        reading=dataclasses.replace(reading, caption_dropout=0.0, encoder_dropout=0.0),
        empty_caption=None,
        seed=_VALIDATION_SEED,
    )


def sample_posterior(
    mean: np.ndarray,
    log_variance: np.ndarray,
    rng: np.random.Generator,
    *,
    out: np.ndarray,
) -> None:
    """Draws a sample of a normal distribution with independent elements.

    Its noise is one of 65,536 quantiles of the normal distribution, each as likely:
    finer than bfloat16, and an eighth of the time of drawing normal numbers.

    Args:
      mean: of any shape and float dtype.
      log_variance: of the same shape.
      rng: gives the noise.
      out: of the same shape and any float dtype; computed in float32 and rounded.
    """
    sample = log_variance.astype(np.float32)
    sample *= 0.5
    np.exp(sample, out=sample)
    words = rng.bit_generator.random_raw(-(-sample.size // 4))  # of 64 bits each
    quantiles = words.view(np.uint16)[: sample.size].reshape(sample.shape)
    sample *= _normal_quantiles().take(quantiles)
    np.add(sample, mean.astype(np.float32), out=out, casting="unsafe")


@functools.cache
def _normal_quantiles() -> np.ndarray:
    """[65536] float32: the middles of as many intervals of equal probability."""
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / 2**16) for i in range(2**16)], "f4")


def batch_spec(
    manifest: Manifest,
    bucket: tuple[int, int],
    *,
    reading: Reading,
    batch_size: int,
) -> Batch:
    """A Batch of `jax.ShapeDtypeStruct`, as `BatchAssembler` makes them.

    Args:
      manifest: of the data set.
      bucket: (h, w) of the latents.
      reading: how records become batches.
      batch_size: rows.
    """

    def struct(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one field of a batch."""
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    length, context_dim = manifest.context_shape
    return Batch(
        latents=struct(
            (*bucket, manifest.latent.shape[-1]), LATENT_DTYPES[reading.latents_dtype]
        ),
        conditioning=Conditioning(
            context=struct((length, context_dim), ml_dtypes.bfloat16),
            pooled=struct((manifest.pooled_dim,), ml_dtypes.bfloat16),
            context_mask=struct((length,), np.bool_) if reading.context_mask else None,
        ),
        sample_index=struct((), np.uint32),
    )
