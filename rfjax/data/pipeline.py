# SPDX-License-Identifier: Apache-2.0
"""From records to batches: shuffle, repeat, caption dropout, split over processes.

Everything is a function of the position in one endless shuffled stream: which record
is there, and which captions are dropped. A stream can therefore start anywhere at
once, its whole state is one number, and one or many processes see the same global
batches.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import grain
import jax
import ml_dtypes
import numpy as np

from rfjax import schema
from rfjax.data.conditioning import (
    CaptionChoices,
    CaptionJoiner,
    caption_weights,
    join_captions,
)
from rfjax.data.joined import name_of_record
from rfjax.data.manifest import Manifest
from rfjax.data.order import Group, Order, bucket_of, in_turn
from rfjax.errors import UserError
from rfjax.types import Batch, Conditioning
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
      read_threads: threads that read and assemble batches, in this process.
      prefetch_batches: batches that are ready or being read, at most.
    """

    caption_dropout: Fraction = 0.1
    encoder_dropout: Fraction = 0.0
    caption_weights: tuple[NonNegativeFloat, ...] = ()
    context_mask: bool = False
    latents_dtype: Annotated[str, OneOf(LATENT_DTYPES)] = "float32"
    shuffle_seed: Seed | None = None
    read_threads: ThreadCount = schema.changeable(16)
    prefetch_batches: BatchCount = schema.changeable(16)

    def __post_init__(self):
        check_fields(self, section="data")


class TrainStream:
    """Endless iterator over host-local training batches of NumPy arrays.

    Rows of process i of n are positions `next + i`, `next + i + n`, ... of the global
    stream, so the union over processes is the same for every n. `sample_index` is the
    position modulo 2**32, which repeats only after four billion samples.

    Args:
      assemble: number of a global batch -> this process's rows of it.
      manifest: what the records are.
      specs: see below.
      global_batch_size: examples in a batch over all processes.
      name_of: see below.
      read_options: threads and batches ahead.

    Attributes:
      manifest: what the records are.
      specs: for each bucket a Batch of `jax.ShapeDtypeStruct`; `__next__` returns
        batches in one of these shapes.
      name_of: position -> the record there, in words.
    """

    def __init__(
        self,
        assemble: Callable[[int], Batch],
        *,
        manifest: Manifest,
        specs: Sequence[Batch],
        global_batch_size: int,
        name_of: Callable[[int], str],
        read_options: grain.ReadOptions,
    ):
        self.manifest = manifest
        self.specs = tuple(specs)
        self.name_of = name_of
        self._assemble = assemble
        self._global_batch_size = global_batch_size
        self._read_options = read_options
        self._next_batch = 0
        self._iterator: Any = None  # opened by the first batch, at the state set then

    def __iter__(self) -> TrainStream:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            batches = grain.MapDataset.range(self._next_batch, sys.maxsize)
            self._iterator = iter(
                batches.map(self._assemble).to_iter_dataset(self._read_options)
            )
        batch = next(self._iterator)
        self._next_batch += 1
        return batch

    @property
    def largest_spec(self) -> Batch:
        """That of the bucket with the most latents: it takes most memory and time."""
        return max(self.specs, key=lambda spec: spec.latents.size)

    def get_state(self) -> dict[str, int]:
        """Returns `{"global_next_index": k}`, equal on all processes; fits in JSON."""
        return {"global_next_index": self._next_batch * self._global_batch_size}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues at a state, regardless of the number of processes that saved it."""
        position = state.get("global_next_index", -1)
        batch, rest = divmod(position, self._global_batch_size)
        if len(state) != 1 or position < 0 or rest:
            raise UserError(
                "the data position must be {'global_next_index': k} with k >= 0, a "
                f"multiple of the batch of {self._global_batch_size}, got "
                f"{dict(state)}; restore it from a checkpoint of this run."
            )
        self.close()
        self._next_batch = int(batch)

    def close(self) -> None:
        """Stops the reading threads."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def train_stream(
    records: Records,
    *,
    manifest: Manifest,
    groups: Sequence[Group],
    weights: Mapping[str, float],
    empty_caption: Mapping[str, np.ndarray],
    reading: Reading,
    global_batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainStream:
    """The records of the training split as an endless shuffled stream.

    Args:
      records: of the training split.
      manifest: what they are.
      groups: of the split, in the order of the records.
      weights: part of the groups -> the share of examples that come from it.
      empty_caption: the text features that stand for no caption.
      reading: how they become batches.
      global_batch_size: examples in a batch over all processes.
      seed: the run's seed; decides dropout, and the order unless
        `reading.shuffle_seed` does.
      process_index: of this process.
      process_count: how many processes share each batch.

    Raises:
      UserError: the batch is not divisible by `process_count`, or larger than a bucket.
    """
    local_batch_size = _local_batch_size(global_batch_size, process_count)
    order = Order(
        groups,
        global_batch_size=global_batch_size,
        seed=seed if reading.shuffle_seed is None else reading.shuffle_seed,
        weights=weights,
    )

    prepare = _row_maker(
        manifest=manifest, empty_caption=empty_caption, reading=reading, seed=seed
    )

    def assemble(batch: int) -> Batch:
        """This process's rows of a global batch."""
        rows = range(process_index, global_batch_size, process_count)
        numbers = order.records(batch, rows)
        prepared = [
            prepare(batch * global_batch_size + row, records[number])
            for row, number in zip(rows, numbers, strict=True)
        ]
        return _to_batch(jax.tree.map(lambda *leaves: np.stack(leaves), *prepared))

    return TrainStream(
        assemble,
        manifest=manifest,
        specs=make_specs(
            manifest, order.buckets, reading=reading, batch_size=local_batch_size
        ),
        global_batch_size=global_batch_size,
        name_of=lambda position: name_of_record(records, order.record(position)),
        # One thread assembles one batch; more threads than batches would idle.
        read_options=grain.ReadOptions(
            num_threads=min(reading.read_threads, reading.prefetch_batches),
            prefetch_buffer_size=reading.prefetch_batches
            if reading.read_threads
            else 0,
        ),
    )


def _row_maker(
    *,
    manifest: Manifest,
    empty_caption: Mapping[str, np.ndarray],
    reading: Reading,
    seed: int,
) -> Callable[[int, Mapping[str, Any]], dict[str, np.ndarray]]:
    """(position, record) -> the row of a training batch."""
    joiner = CaptionJoiner(manifest)
    kind_weights = caption_weights(manifest.text, reading.caption_weights)
    choices = CaptionChoices(
        seed=seed,
        caption_dropout=reading.caption_dropout,
        encoder_dropout=reading.encoder_dropout,
        weights=kind_weights,
        num_encoders=len(manifest.text.encoders),
    )

    def prepare(
        position: int, record: Mapping[str, np.ndarray | bytes]
    ) -> dict[str, np.ndarray]:
        """One record of the stream, as it enters a batch."""
        has_caption = [
            joiner.has_caption(record, kind) for kind in range(len(kind_weights))
        ]
        choice = choices.at(position, has_caption)
        caption = joiner.allocate(1)
        joiner.write(
            empty_caption if choice.is_empty else record,
            caption,
            0,
            caption=0 if choice.is_empty else choice.caption,
            dropped=choice.dropped,
        )
        return _prepare(record, caption=caption, reading=reading, sample_index=position)

    return prepare


def validation_batches(
    records: Records,
    *,
    manifest: Manifest,
    groups: Sequence[Group],
    reading: Reading,
    batch_size: int,
    num_samples: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    only_first: bool = False,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields the records of the validation split once, in order, without dropout.

    Args:
      records: of the validation split.
      manifest: what they are.
      groups: of the split, in the order of the records.
      reading: how they become batches.
      batch_size: examples in a batch over all processes.
      num_samples: how many records, from the first of each bucket on and in the
        proportion of the buckets; all when None.
      process_index: of this process, which gets its block of rows of each batch.
      process_count: how many processes share each batch.
      only_first: of each bucket its first batch alone, to compile for.

    Yields:
      (batch, valid): host-local, of one bucket; valid is [B] bool, False for rows that
      only fill up the last batch of one (they repeat its last record).

    Raises:
      UserError: at once, if the batch is not divisible by `process_count` or there are
        fewer records than `num_samples`.
    """
    local_batch_size = _local_batch_size(batch_size, process_count)
    num_samples = len(records) if num_samples is None else num_samples
    if not 1 <= num_samples <= len(records):
        raise UserError(
            f"num_samples must be between 1 and the {len(records)} records of the "
            f"validation split, got {num_samples}; encode more validation examples or "
            "ask for fewer."
        )

    def generate() -> Iterator[tuple[Batch, np.ndarray]]:
        """One pass over the split."""
        first = process_index * local_batch_size
        own = slice(first, first + local_batch_size)
        seen = set()
        for numbers, valid in in_turn(
            groups, batch_size=batch_size, num_records=num_samples
        ):
            bucket = bucket_of(groups, numbers[0])
            if only_first and bucket in seen:
                continue
            seen.add(bucket)
            prepared = []
            for index in numbers[own].tolist():
                record = records[index]
                prepared.append(
                    _prepare(
                        record,
                        caption=join_captions([record], manifest),
                        reading=reading,
                        sample_index=index,
                    )
                )
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *prepared)
            yield _to_batch(stacked), valid[own]

    # Checked above at once, not at the first batch.
    return generate()


def _local_batch_size(global_batch_size: int, process_count: int) -> int:
    if global_batch_size < 1:
        raise UserError(
            f"the batch size must be at least 1, got {global_batch_size}; choose a "
            "multiple of the number of processes."
        )
    local_batch_size, remainder = divmod(global_batch_size, process_count)
    if remainder:
        raise UserError(
            f"the batch size {global_batch_size} must be divisible by the number of "
            f"processes {process_count}; choose a multiple of {process_count}."
        )
    return local_batch_size


def _prepare(
    record: Mapping[str, Any],
    *,
    caption: Mapping[str, np.ndarray],
    reading: Reading,
    sample_index: int,
) -> dict[str, np.ndarray]:
    """One row of a batch: the latents of a record, with the caption given."""
    return {
        "latents": record["latents"].astype(LATENT_DTYPES[reading.latents_dtype]),
        "sample_index": np.uint32(sample_index % 2**32),
        **{
            name: array[0]
            for name, array in caption.items()
            if name != "context_mask" or reading.context_mask
        },
    }


def _to_batch(fields: Mapping[str, Any]) -> Batch:
    return Batch(
        latents=fields["latents"],
        conditioning=Conditioning(
            context=fields["context"],
            pooled=fields["pooled"],
            context_mask=fields.get("context_mask"),
        ),
        sample_index=fields["sample_index"],
    )


def make_specs(
    manifest: Manifest,
    buckets: Sequence[tuple[int, int]],
    *,
    reading: Reading,
    batch_size: int,
) -> tuple[Batch, ...]:
    """For each bucket a Batch of `jax.ShapeDtypeStruct`, of `batch_size` rows."""

    def struct(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one field of a batch."""
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    length, context_dim = manifest.context_shape
    fields = {
        "context": struct((length, context_dim), ml_dtypes.bfloat16),
        "pooled": struct((manifest.pooled_dim,), ml_dtypes.bfloat16),
        "sample_index": struct((), np.uint32),
    }
    if reading.context_mask:
        fields["context_mask"] = struct((length,), np.bool_)
    channels, dtype = manifest.latent_shape[-1], LATENT_DTYPES[reading.latents_dtype]
    return tuple(
        _to_batch(fields | {"latents": struct((*bucket, channels), dtype)})
        for bucket in buckets
    )
