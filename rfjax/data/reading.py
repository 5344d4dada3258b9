# SPDX-License-Identifier: Apache-2.0
"""The config fields that say how records become batches, the same for all data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Annotated

import grain
import ml_dtypes
import numpy as np

from rfjax import schema
from rfjax.value_types import (
    BatchCount,
    Fraction,
    NonNegativeFloat,
    OneOf,
    Seed,
    ThreadCount,
    check_fields,
)

LATENT_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}

_MOST_THREADS = 16  # of a process by default; they share one interpreter

# Records by number, each feature name -> value; read from several threads at a time.
Records = Sequence[Mapping[str, np.ndarray | bytes]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How records become batches.

    Attributes:
      caption_dropout: probability that a caption is replaced by the empty one.
      encoder_dropout: probability that a text encoder is dropped, each by itself: its
        part of context and pooled is zero. SD3 trains with 0.464.
      caption_weights: how often each kind of caption is read, for data that has
        several of each picture; equally often when empty.
      context_mask: give batches a mask that hides pad tokens. SD3 has none.
      latents_dtype: "float32" or "bfloat16" (as stored; half the bytes to copy).
      shuffle_seed: order of the stream; the run's seed when None.
      read_threads: threads that read and assemble batches, in this process; None: two
        for each core, at most 16. Data on a slow or distant disk may need more.
      prefetch_batches: batches that are ready or being read, at most; None: two more
        than threads.
    """

    caption_dropout: Fraction = 0.1
    encoder_dropout: Fraction = 0.0
    caption_weights: tuple[NonNegativeFloat, ...] = ()
    context_mask: bool = False
    latents_dtype: Annotated[str, OneOf(LATENT_DTYPES)] = "float32"
    shuffle_seed: Seed | None = None
    read_threads: ThreadCount | None = schema.changeable(None)
    prefetch_batches: BatchCount | None = schema.changeable(None)

    def __post_init__(self):
        check_fields(self, section="data")

    def options(self) -> grain.ReadOptions:
        """Threads and batches ahead, as Grain takes them."""
        threads = self.read_threads
        if threads is None:
            threads = min(2 * len(os.sched_getaffinity(0)), _MOST_THREADS)
        ahead = self.prefetch_batches
        if ahead is None:
            ahead = threads + 2
        return grain.ReadOptions(
            # One thread assembles one batch; more threads than batches would idle.
            num_threads=min(threads, ahead),
            prefetch_buffer_size=ahead if threads else 0,
        )
