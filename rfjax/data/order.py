# SPDX-License-Identifier: Apache-2.0
"""The order of training: which record stands where in the endless stream.

Everything follows from a position in the stream, at once and without a table: a run
resumes anywhere, and any number of processes read the same global batches.

Records are in groups: those of one data set in one bucket. A batch is of one bucket.

One group: its records are shuffled again in each pass.

Several data sets in a bucket: their streams are interleaved by weight, so that the
share of each is right in every stretch of the bucket's rows, to one row.

Several buckets: bucket k, to which L_k examples of an epoch belong, has
floor((e + 1) L_k / B) - floor(e L_k / B) batches of B examples in epoch e, and the
batches of an epoch are shuffled. Over epochs each has its share, to one batch, and each
pass over a group holds every record once.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import grain
import numpy as np
from grain import experimental as grain_experimental

from rfjax.data.manifest import Manifest
from rfjax.errors import UserError

# Keeps the shuffling of batches apart from that of records.
_SCHEDULE = 0xBA7C
_COMMON_BATCH = 256  # that of a run whose config does not say


@dataclasses.dataclass(frozen=True)
class Group:
    """Records that follow each other: those of one data set in one bucket.

    Attributes:
      bucket: (h, w) of the latents.
      num_records: how many there are.
      part: name of the data set in a mixture.
    """

    bucket: tuple[int, int]
    num_records: int
    part: str = ""


def groups_of(manifest: Manifest, split: str) -> tuple[Group, ...]:
    """The groups of a split of one data set, in the order of their record numbers."""
    buckets = [shape[:2] for shape in manifest.latent.shapes]
    if len(buckets) == 1:
        return (Group(buckets[0], manifest.splits[split]),)
    counts = dict.fromkeys(buckets, 0)
    for file in manifest.files:
        if file.split == split and file.bucket in counts:
            counts[file.bucket] += file.num_records
    return tuple(Group(bucket, count) for bucket, count in counts.items())


def shares_of(
    groups: Sequence[Group], weights: Mapping[str, float]
) -> dict[tuple[int, int], Fraction]:
    """The share of all training examples that each bucket has, by (h, w).

    Args:
      groups: of the training split.
      weights: part of a mixture -> the share of examples from it, up to a factor.
    """
    lengths: dict[tuple[int, int], Fraction] = {}
    for group, length in zip(groups, _epoch_lengths(groups, weights), strict=True):
        lengths[group.bucket] = lengths.get(group.bucket, Fraction()) + length
    total = sum(lengths.values())
    return {bucket: length / total for bucket, length in lengths.items() if length}


def subsets_of(groups: Sequence[Group]) -> dict[str, list[range]]:
    """Record numbers of every bucket and every part, where there are several."""
    buckets: dict[str, list[range]] = {}
    parts: dict[str, list[range]] = {}
    start = 0
    for group in groups:
        numbers = range(start, start + group.num_records)
        start = numbers.stop
        if numbers:
            height, width = group.bucket
            buckets.setdefault(f"{height}x{width}", []).append(numbers)
            parts.setdefault(group.part, []).append(numbers)
    several = [subsets for subsets in (buckets, parts) if len(subsets) > 1]
    return {name: ranges for subsets in several for name, ranges in subsets.items()}


def bucket_of(groups: Sequence[Group], number: int) -> tuple[int, int]:
    """(h, w) of the latents of a record by its number."""
    ends = itertools.accumulate(group.num_records for group in groups)
    return next(g.bucket for g, end in zip(groups, ends, strict=True) if number < end)


def in_turn(
    groups: Sequence[Group], *, batch_size: int, num_records: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every record once, in batches of one group each.

    Args:
      groups: of the split, in the order of their record numbers.
      batch_size: B.
      num_records: how many; of each group its share of them, from its first record on.
        All when None.

    Yields:
      Record numbers [B], and which of the rows count [B] bool: the last batch of a
      group is filled up with its last record.
    """
    total = sum(group.num_records for group in groups)
    num_records = total if num_records is None else num_records
    start = 0
    for group in groups:
        end = start + group.num_records
        stop = start + num_records * end // total - num_records * start // total
        for first in range(start, stop, batch_size):
            rows = np.arange(first, first + batch_size)
            yield np.minimum(rows, stop - 1), rows < stop
        start = end


class Order:
    """The order of one stream; a pure function of its arguments.

    Args:
      groups: of the split, in the order of their record numbers; empty ones are left
        out of training.
      global_batch_size: B, examples in a batch over all processes.
      seed: of the shuffling.
      weights: part of a mixture -> the share of examples that come from it, up to a
        common factor; not needed for one.

    Raises:
      UserError: a bucket has too few records for a batch.

    Attributes:
      buckets: (h, w) of those that have records, each once.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        global_batch_size: int,
        seed: int,
        weights: Mapping[str, float] = types.MappingProxyType({}),
    ):
        self._batch_size = global_batch_size
        self._seed = seed
        self.buckets = tuple(dict.fromkeys(g.bucket for g in groups if g.num_records))
        self._streams = _streams(groups, self.buckets, seed=seed, weights=weights)
        self._schedule = None
        if len(self.buckets) > 1:
            lengths = [stream.epoch_length for stream in self._streams]
            self._schedule = _Schedule(lengths, batch_size=global_batch_size, seed=seed)
            _check_counts(groups, batch_size=global_batch_size)

    def bucket(self, batch: int) -> tuple[int, int]:
        """(h, w) of the latents of a global batch."""
        return self.buckets[self._place(batch)[0]]

    def records(self, batch: int, rows: range | None = None) -> list[int]:
        """Record numbers of a global batch.

        Args:
          batch: its number, from 0.
          rows: of the batch, those of process i of n as range(i, B, n); all when None.
        """
        bucket, own_batch = self._place(batch)
        first = own_batch * self._batch_size
        stream = self._streams[bucket]
        rows = range(self._batch_size) if rows is None else rows
        return [stream.record(first + row) for row in rows]

    def record(self, position: int) -> int:
        """Record number at a position of the stream."""
        batch, row = divmod(position, self._batch_size)
        return self.records(batch, range(row, row + 1))[0]

    def _place(self, batch: int) -> tuple[int, int]:
        """Which bucket a global batch is of, and which of its batches it is."""
        return (0, batch) if self._schedule is None else self._schedule.place(batch)


def interleave(position: int, shares: Sequence[int]) -> tuple[int, int]:
    """Which of several endless streams is at a position of their mixture.

    Among the first k positions a stream has its share of k, to one: the first stream
    takes its share of all, the second its share of the rest, and so on.

    Args:
      position: in the mixture.
      shares: of each stream, up to a common factor.

    Returns:
      Number of the stream, and the position in it.
    """
    total = sum(shares)
    for stream, share in enumerate(shares):
        before = position * share // total
        if (position + 1) * share // total > before:
            return stream, before
        position -= before
        total -= share
    raise AssertionError("the last stream has all of the rest")


class _Stream:
    """The endless rows of one bucket: its groups, each shuffled, interleaved."""

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        starts: Sequence[int],
        lengths: Sequence[Fraction],
        seeds: Sequence[int],
    ):
        self.epoch_length = sum(lengths)
        factor = math.lcm(*(length.denominator for length in lengths))
        self._shares = [int(length * factor) for length in lengths]
        self._starts = tuple(starts)
        # Shuffled again in each repetition.
        self._numbers = [
            grain.MapDataset.range(group.num_records).seed(seed).shuffle().repeat(None)
            for group, seed in zip(groups, seeds, strict=True)
        ]

    def record(self, position: int) -> int:
        """Record number at a position of this stream."""
        group, position = interleave(position, self._shares)
        return self._starts[group] + int(self._numbers[group][position])


def bucket_counts(groups: Sequence[Group]) -> dict[tuple[int, int], int]:
    """How many records there are of each bucket, by (h, w)."""
    counts: dict[tuple[int, int], int] = {}
    for group in groups:
        counts[group.bucket] = counts.get(group.bucket, 0) + group.num_records
    return counts


def note_on_small_buckets(manifest: Manifest) -> str | None:
    """What training will refuse of a data set, in a sentence; None if nothing."""
    counts = bucket_counts(groups_of(manifest, "train"))
    small = _smaller_than(_COMMON_BATCH, counts)
    if len(counts) == 1 or not small:
        return None
    return (
        f"of some buckets there are few training examples, {_describe(small)} latents: "
        f"train.global_batch_size can be at most {min(small.values())}. More examples "
        "or a smaller buckets.max_aspect would make room."
    )


def _check_counts(groups: Sequence[Group], *, batch_size: int) -> None:
    """Raises UserError if a batch would hold all records of a bucket and more."""
    small = _smaller_than(batch_size, bucket_counts(groups))
    if small:
        raise UserError(
            f"train.global_batch_size must be at most the examples of each bucket, got "
            f"{batch_size} for {_describe(small)} latents; choose at most "
            f"{min(small.values())}, or encode the data with more examples or a "
            "smaller buckets.max_aspect."
        )


def _smaller_than(
    batch_size: int, counts: Mapping[tuple[int, int], int]
) -> dict[tuple[int, int], int]:
    """The buckets that have examples, but fewer than a batch."""
    return {bucket: count for bucket, count in counts.items() if 0 < count < batch_size}


def _describe(counts: Mapping[tuple[int, int], int]) -> str:
    """As "9 of 6x2, 17 of 2x6"."""
    return ", ".join(f"{count} of {h}x{w}" for (h, w), count in counts.items())


def _epoch_lengths(
    groups: Sequence[Group], weights: Mapping[str, float]
) -> list[Fraction]:
    """How many examples of each group an epoch has.

    That is as many as there are records of all parts, shared out by weight, and evenly
    within each part.
    """
    parts: dict[str, int] = {}
    for group in groups:
        parts[group.part] = parts.get(group.part, 0) + group.num_records
    # As decimals, so that 0.7 is seven tenths.
    shares = {part: Fraction(str(weights.get(part, 1))) for part in parts}
    total = sum(parts.values()) / sum(shares.values())
    return [
        total * shares[group.part] * group.num_records / max(parts[group.part], 1)
        for group in groups
    ]


def _streams(
    groups: Sequence[Group],
    buckets: Sequence[tuple[int, int]],
    *,
    seed: int,
    weights: Mapping[str, float],
) -> list[_Stream]:
    """The stream of each bucket."""
    starts = itertools.accumulate((g.num_records for g in groups), initial=0)
    lengths = _epoch_lengths(groups, weights)
    places = list(zip(groups, starts, lengths, strict=False))
    is_alone = sum(group.num_records > 0 for group in groups) == 1
    streams = []
    for bucket in buckets:
        own = [p for p in places if p[0].bucket == bucket and p[0].num_records]
        streams.append(
            _Stream(
                [group for group, _, _ in own],
                starts=[start for _, start, _ in own],
                lengths=[length for _, _, length in own],
                seeds=[
                    seed % 2**32 if is_alone else _seed_of(group, seed=seed)
                    for group, _, _ in own
                ],
            )
        )
    return streams


def _seed_of(group: Group, *, seed: int) -> int:
    """The seed of one of several groups."""
    part = int.from_bytes(group.part.encode())
    sequence = np.random.SeedSequence((seed, *group.bucket, part))
    return int(sequence.generate_state(1)[0])


class _Schedule:
    """Which bucket each batch is of."""

    def __init__(self, lengths: Sequence[Fraction], *, batch_size: int, seed: int):
        self._rates = [length / batch_size for length in lengths]  # batches an epoch
        self._seed = seed

    def place(self, batch: int) -> tuple[int, int]:
        """Number of the bucket of a batch, and which of its batches it is."""
        epoch = self._epoch_of(batch)
        firsts, ends = self._begun(epoch), self._begun(epoch + 1)
        counts = [end - first for first, end in zip(firsts, ends, strict=True)]
        seed = np.random.SeedSequence((self._seed, _SCHEDULE, epoch)).generate_state(1)
        place = grain_experimental.index_shuffle(
            batch - sum(firsts), max_index=sum(counts) - 1, seed=int(seed[0]), rounds=4
        )
        for bucket, count in enumerate(counts):
            if place < count:
                return bucket, firsts[bucket] + place
            place -= count
        raise AssertionError("an epoch has as many batches as its buckets")

    def _begun(self, epoch: int) -> list[int]:
        """Batches of each bucket before an epoch."""
        return [math.floor(epoch * rate) for rate in self._rates]

    def _epoch_of(self, batch: int) -> int:
        """The epoch that a batch is in: the last that begins at it or before."""
        low = math.floor(batch / sum(self._rates))  # rounding down makes epochs begin
        high = low + math.ceil(len(self._rates) / sum(self._rates)) + 1  # earlier
        while high - low > 1:
            middle = (low + high) // 2
            if sum(self._begun(middle)) <= batch:
                low = middle
            else:
                high = middle
        return low
