# SPDX-License-Identifier: Apache-2.0
"""The contract of a data set that a run reads: the config section `data`."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rfjax import schema
from rfjax.data import order, pipeline
from rfjax.data.manifest import Manifest
from rfjax.data.order import Group
from rfjax.data.pipeline import TrainStream
from rfjax.data.reading import Reading, Records
from rfjax.encoders.images import ImageCodec
from rfjax.errors import UserError
from rfjax.types import Batch
from rfjax.value_types import InputPath


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(Reading, abc.ABC):
    """What a run reads, and how.

    A member is a frozen dataclass of its own fields that says what its records are, by
    number. Order, caption dropout, sharing between processes and exact resuming follow
    from the fields of `Reading` and are the same for all members; one whose records
    have no numbers overrides `train_stream` and `validation_batches`.

    The data has the splits "train" and "validation". A record holds

      latents: [H, W, C] bfloat16, with mean 0 and variance 1 over the training split;
        (H, W, C) is one of `manifest().latent.shapes`.
      log_variance: the same, if latents are the means of posteriors.
      caption: bytes, UTF-8.
      annotation: bytes, JSON or empty: what is known about the example.

    and for each text encoder of the manifest, whose prefix its names begin with,

      context: [T, context_dim] bfloat16, or [context_length, context_dim] in the layout
        "unpadded".
      context_length: int32, tokens that are not pads.
      pooled: [pooled_dim] bfloat16.

    Attributes:
      encoders: folders where weights of text encoders and autoencoders are now; looked
        into before the paths with which the data was encoded. Training needs none.
    """

    encoders: tuple[InputPath, ...] = schema.changeable(())

    @abc.abstractmethod
    def manifest(self) -> Manifest:
        """Says what the data is: shapes, counts, text encoders. Quick, without records.

        Raises:
          MissingFileError: there is no data.
          UserError: it is not data that this rfjax reads.
        """

    @abc.abstractmethod
    def records(self, split: str) -> Records:
        """Opens a split: record i is the same at any time, in every process.

        Raises:
          MissingFileError: the data is missing or incomplete.
          UserError: no such split, or damaged data.
        """

    @abc.abstractmethod
    def empty_caption(self) -> Mapping[str, np.ndarray]:
        """The text features that stand for no caption, padded to all T tokens."""

    def groups(self, split: str) -> tuple[Group, ...]:
        """The records of a split by bucket, in the order of their numbers."""
        return order.groups_of(self.manifest(), split)

    def weights(self) -> Mapping[str, float]:
        """Part of the groups -> the share of training examples that come from it.

        By default there are no parts.
        """
        return {}

    def folders(self) -> tuple[str, ...]:
        """Where it is read from; by default from no folder."""
        return ()

    def moved_to(self, folders: Sequence[str]) -> Dataset:
        """The same data set read from other folders, one for each of `folders()`."""
        del folders
        return self

    def check(self) -> None:
        """Checks for damage before a run reads the data; by default nothing is checked.

        Raises:
          MissingFileError: the data is missing or incomplete.
          UserError: it is damaged.
        """

    def codec(self) -> ImageCodec:
        """What decodes latents to pictures; by default there is no codec.

        Raises:
          UserError: the latents are not those of pictures.
        """
        raise UserError(
            f"data must be encoded pictures to draw any, got a run on the data set "
            f"{self.manifest().name}, whose latents are not of pictures; train on an "
            "encoded data set such as configs/emoji.py."
        )

    def train_stream(
        self,
        *,
        global_batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> TrainStream:
        """Opens the training split as an endless shuffled stream.

        Args:
          global_batch_size: examples in a batch over all processes.
          seed: the run's seed; decides dropout, and the order unless `shuffle_seed`
            does.
          process_index: of this process.
          process_count: how many processes share each batch.

        Raises:
          MissingFileError: the data is missing or incomplete.
          UserError: it is damaged, or the batch is not divisible by `process_count`.
        """
        self.check()
        return pipeline.train_stream(
            self.records("train"),
            manifest=self.manifest(),
            groups=self.groups("train"),
            weights=self.weights(),
            empty_caption=self.empty_caption(),
            reading=self,
            global_batch_size=global_batch_size,
            seed=seed,
            process_index=process_index,
            process_count=process_count,
        )

    def validation_batches(
        self,
        *,
        batch_size: int,
        num_samples: int | None = None,
        process_index: int = 0,
        process_count: int = 1,
        only_first: bool = False,
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """Yields the validation split once, in record order, without dropout.

        Args:
          batch_size: examples in a batch over all processes.
          num_samples: how many records, from the first of each bucket on and in the
            proportion of the buckets; all when None.
          process_index: of this process, which gets its block of rows of each batch.
          process_count: how many processes share each batch.
          only_first: of each bucket its first batch alone, to compile for.

        Yields:
          (batch, valid): host-local, of one bucket; valid is [B] bool, False for rows
          that only fill up the last batch of one (they repeat its last record).

        Raises:
          MissingFileError: the data is missing or incomplete.
          UserError: at once, if the batch is not divisible by `process_count`, or there
            are fewer records than `num_samples`.
        """
        return pipeline.validation_batches(
            self.records("validation"),
            manifest=self.manifest(),
            groups=self.groups("validation"),
            reading=self,
            batch_size=batch_size,
            num_samples=num_samples,
            process_index=process_index,
            process_count=process_count,
            only_first=only_first,
        )
