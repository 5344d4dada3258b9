# SPDX-License-Identifier: Apache-2.0
"""From records to batches: shuffle, repeat, caption dropout, split over processes.

Everything is a function of the position in one endless shuffled stream: which record
is there, and which captions are dropped. A stream can therefore start anywhere at
once, its whole state is one number, and one or many processes see the same global
batches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from rfjax.cpu import keep_freed_memory
from rfjax.data.assembly import BatchAssembler, batch_spec, validation_assembler
from rfjax.data.joined import name_of_record
from rfjax.data.manifest import Manifest
from rfjax.data.order import Group, Order, bucket_of, in_turn
from rfjax.data.reading import Reading, Records
from rfjax.errors import UserError
from rfjax.types import Batch


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
    keep_freed_memory()
    order = Order(
        groups,
        global_batch_size=global_batch_size,
        seed=seed if reading.shuffle_seed is None else reading.shuffle_seed,
        weights=weights,
    )
    assembler = BatchAssembler(
        records,
        manifest=manifest,
        reading=reading,
        empty_caption=empty_caption,
        seed=seed,
    )

    def assemble(batch: int) -> Batch:
        """This process's rows of a global batch."""
        rows = range(process_index, global_batch_size, process_count)
        start = batch * global_batch_size
        return assembler(order.records(batch, rows), [start + row for row in rows])

    return TrainStream(
        assemble,
        manifest=manifest,
        specs=[
            batch_spec(manifest, bucket, reading=reading, batch_size=local_batch_size)
            for bucket in order.buckets
        ],
        global_batch_size=global_batch_size,
        name_of=lambda position: name_of_record(records, order.record(position)),
        read_options=reading.options(),
    )


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

    assembler = validation_assembler(records, manifest=manifest, reading=reading)

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
            own_numbers = numbers[own].tolist()
            yield assembler(own_numbers, own_numbers), valid[own]

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
