# SPDX-License-Identifier: Apache-2.0
"""From records to batches: shuffle, repeat, caption dropout, split over processes.

Everything is a function of the position in one endless shuffled stream: which record
is there, and which captions are dropped. A stream can therefore start anywhere at
once, its whole state is one number, and one or many processes see the same global
batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import grain
import jax
import ml_dtypes
import numpy as np
from grain import experimental as grain_experimental

from rfjax import schema
from rfjax.data.conditioning import (
    CaptionChoices,
    CaptionJoiner,
    caption_weights,
    join_captions,
)
from rfjax.data.joined import name_of_record
from rfjax.data.manifest import Manifest
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

    Attributes:
      manifest: what the records are.
      spec: a Batch of `jax.ShapeDtypeStruct`, in the shapes `__next__` returns.
      name_of: position -> the record there, in words.
    """

    def __init__(
        self,
        iterator: Any,
        *,
        manifest: Manifest,
        spec: Batch,
        name_of: Callable[[int], str],
    ):
        self._iterator = iterator
        self.manifest = manifest
        self.spec = spec
        self.name_of = name_of

    def __iter__(self) -> TrainStream:
        return self

    def __next__(self) -> Batch:
        return _to_batch(next(self._iterator))

    def get_state(self) -> dict[str, int]:
        """Returns `{"global_next_index": k}`, equal on all processes; fits in JSON."""
        return self._iterator.get_state()

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues at a state, regardless of the number of processes that saved it."""
        if list(state) != ["global_next_index"] or state["global_next_index"] < 0:
            raise UserError(
                "the data position must be {'global_next_index': k} with k >= 0, got "
                f"{dict(state)}; restore it from a checkpoint of this rfjax."
            )
        self._iterator.set_state({k: int(v) for k, v in state.items()})

    def close(self) -> None:
        """Stops the reading threads."""
        self._iterator.close()


def train_stream(
    records: Records,
    *,
    manifest: Manifest,
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
      empty_caption: the text features that stand for no caption.
      reading: how they become batches.
      global_batch_size: examples in a batch over all processes.
      seed: the run's seed; decides dropout, and the order unless
        `reading.shuffle_seed` does.
      process_index: of this process.
      process_count: how many processes share each batch.

    Raises:
      UserError: the batch is not divisible by `process_count`.
    """
    local_batch_size = _local_batch_size(global_batch_size, process_count)
    shuffle_seed = seed if reading.shuffle_seed is None else reading.shuffle_seed
    joiner = CaptionJoiner(manifest)
    weights = caption_weights(manifest.text, reading.caption_weights)
    choices = CaptionChoices(
        seed=seed,
        caption_dropout=reading.caption_dropout,
        encoder_dropout=reading.encoder_dropout,
        weights=weights,
        num_encoders=len(manifest.text.encoders),
    )

    def prepare(
        position: int, record: Mapping[str, np.ndarray | bytes]
    ) -> dict[str, np.ndarray]:
        """One record of the stream, as it enters a batch."""
        has_caption = [joiner.has_caption(record, kind) for kind in range(len(weights))]
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

    def in_order_of_stream(source: grain.MapDataset) -> grain.MapDataset:
        """Records, or their numbers, by position in the stream."""
        # Shuffled again in each repetition.
        return source.seed(shuffle_seed % 2**32).shuffle().repeat(None)

    dataset = in_order_of_stream(grain.MapDataset.source(records)).map_with_index(
        prepare
    )
    numbers = in_order_of_stream(grain.MapDataset.range(len(records)))
    elastic = grain_experimental.ElasticIterator(
        dataset,
        global_batch_size,
        grain.sharding.ShardOptions(process_index, process_count),
        # One thread assembles one batch; more threads than batches would idle.
        read_options=grain.ReadOptions(
            num_threads=min(reading.read_threads, reading.prefetch_batches),
            prefetch_buffer_size=reading.prefetch_batches
            if reading.read_threads
            else 0,
        ),
    )
    return TrainStream(
        iter(elastic),
        manifest=manifest,
        spec=_make_spec(manifest, reading, local_batch_size),
        name_of=lambda position: name_of_record(records, int(numbers[position])),
    )


def validation_batches(
    records: Records,
    *,
    manifest: Manifest,
    reading: Reading,
    batch_size: int,
    num_samples: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields the records of the validation split once, in order, without dropout.

    Args:
      records: of the validation split.
      manifest: what they are.
      reading: how they become batches.
      batch_size: examples in a batch over all processes.
      num_samples: how many records from the first on; all when None.
      process_index: of this process, which gets its block of rows of each batch.
      process_count: how many processes share each batch.

    Yields:
      (batch, valid): host-local; valid is [B] bool, False for rows that only fill up
      the last batch (they repeat the last record).

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
        for start in range(0, num_samples, batch_size):
            first = start + process_index * local_batch_size
            rows = np.arange(first, first + local_batch_size)
            prepared = []
            for index in np.minimum(rows, num_samples - 1).tolist():
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
            yield _to_batch(stacked), rows < num_samples

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


def _make_spec(manifest: Manifest, reading: Reading, batch_size: int) -> Batch:
    def struct(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one field of a batch."""
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    length, context_dim = manifest.context_shape
    fields = {
        "latents": struct(manifest.latent_shape, LATENT_DTYPES[reading.latents_dtype]),
        "context": struct((length, context_dim), ml_dtypes.bfloat16),
        "pooled": struct((manifest.pooled_dim,), ml_dtypes.bfloat16),
        "sample_index": struct((), np.uint32),
    }
    if reading.context_mask:
        fields["context_mask"] = struct((length,), np.bool_)
    return _to_batch(fields)
