# SPDX-License-Identifier: Apache-2.0
"""The order of training, counted out: every promise on whole epochs, each with its
control."""

import collections
import itertools
import time

import numpy as np
import pytest

from rfjax.data import shards
from rfjax.data.order import (
    Group,
    Order,
    in_turn,
    interleave,
    note_on_small_buckets,
    shares_of,
    subsets_of,
)
from rfjax.errors import UserError

BUCKETS = [Group((4, 8), 37), Group((6, 6), 100), Group((8, 4), 23)]
MIXTURE = [
    Group((4, 8), 400, part="a"),
    Group((6, 6), 600, part="a"),
    Group((6, 6), 500, part="b"),
    Group((8, 4), 300, part="b"),
]


def make(groups=BUCKETS, *, batch=8, seed=0, **options):
    return Order(groups, global_batch_size=batch, seed=seed, **options)


def group_of(groups, record):
    ends = np.cumsum([group.num_records for group in groups])
    return groups[int(np.searchsorted(ends, record, side="right"))]


@pytest.mark.parametrize(
    ("count", "seed", "expected"),
    [
        (10, 0, [1, 2, 4, 5, 9, 7, 8, 6, 0, 3, 9, 6, 1, 8, 2, 0, 3, 5, 4, 7]),
        (7, 2**32 + 5, [3, 2, 4, 5, 1, 0, 6, 3, 6, 1, 5, 2, 0, 4]),
    ],
)
def test_one_group_is_read_as_ever(count, seed, expected):
    """Written down before there were buckets: runs of that time resume."""
    order = make([Group((4, 4), count)], batch=3, seed=seed)
    assert [order.record(i) for i in range(len(expected))] == expected
    assert list(itertools.chain(*(order.records(b) for b in range(4)))) == expected[:12]
    # Empty buckets beside it change nothing.
    order = make([Group((2, 8), 0), Group((4, 4), count)], batch=3, seed=seed)
    assert [order.record(i) for i in range(len(expected))] == expected
    assert make([Group((4, 4), count)], seed=seed + 1).record(0) != expected[0] or (
        make([Group((4, 4), count)], seed=seed + 1).record(1) != expected[1]
    )


@pytest.mark.parametrize("batch", [5, 23])
def test_batches_are_of_one_bucket_and_every_record_comes_once_a_pass(batch):
    order = make(batch=batch)
    total = sum(group.num_records for group in BUCKETS)
    epochs = 4
    seen = collections.defaultdict(list)
    for number in range(epochs * total // batch):
        records = order.records(number)
        assert len(records) == batch
        groups = {group_of(BUCKETS, record) for record in records}
        assert {group.bucket for group in groups} == {order.bucket(number)}
        seen[order.bucket(number)] += records
    for group in BUCKETS:
        records = seen[group.bucket]
        # As many as of the epochs, to a batch; and all equally often, to one.
        assert abs(len(records) - epochs * group.num_records) <= batch
        counts = collections.Counter(records)
        assert len(counts) == group.num_records
        assert max(counts.values()) - min(counts.values()) <= 1 + (batch > 1)


def test_a_pass_over_a_bucket_holds_each_record_once():
    """The rows of a bucket, put in the order of its own batches."""
    batch = 5
    order = make(batch=batch)
    numbers = collections.defaultdict(dict)
    for number in range(100):
        bucket, own = order._place(number)
        assert own not in numbers[bucket]
        numbers[bucket][own] = order.records(number)
    orders = []
    for bucket, group in enumerate(BUCKETS):
        batches = numbers[bucket]
        whole = 0  # batches without a gap
        while whole in batches:
            whole += 1
        rows = list(itertools.chain(*(batches[own] for own in range(whole))))
        for start in range(0, len(rows) - group.num_records + 1, group.num_records):
            one_pass = rows[start : start + group.num_records]
            assert len(set(one_pass)) == group.num_records
            orders.append((bucket, one_pass))
        assert len(rows) > 2 * group.num_records
    # Control: no two passes are in the same order.
    assert len({(bucket, tuple(rows)) for bucket, rows in orders}) == len(orders)


def test_an_epoch_shuffles_the_batches():
    order = make(batch=2)
    schedule = [order.bucket(number) for number in range(160)]
    epoch = schedule[: 18 + 50 + 11]
    assert collections.Counter(epoch) == {(4, 8): 18, (6, 6): 50, (8, 4): 11}
    later = schedule[len(epoch) : len(epoch) + 81]
    assert collections.Counter(later) == {(4, 8): 19, (6, 6): 50, (8, 4): 12}
    assert epoch != sorted(epoch)
    assert epoch != later[: len(epoch)]
    assert [make(batch=2, seed=1).bucket(n) for n in range(79)] != epoch
    # No bucket waits for the end: each is among the first and the last third.
    assert set(epoch[:26]) == set(epoch[-26:]) == set(order.buckets)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 12])
def test_processes_read_parts_of_the_same_batches(count):
    order = make(MIXTURE, batch=12, weights={"a": 1, "b": 2})
    for batch in (0, 7, 1000):
        rows = [order.records(batch, range(i, 12, count)) for i in range(count)]
        woven = [rows[i % count][i // count] for i in range(12)]
        assert woven == order.records(batch)
        assert woven == [order.record(12 * batch + row) for row in range(12)]
    assert order.records(0) != order.records(1)


@pytest.mark.parametrize("weights", [(1, 1), (0.7, 0.3)])
def test_parts_have_their_share(weights):
    batch, num_batches = 20, 180  # two epochs
    order = make(MIXTURE, batch=batch, weights=dict(zip("ab", weights, strict=True)))
    parts, buckets = collections.Counter(), collections.Counter()
    per_record = collections.defaultdict(collections.Counter)
    for number in range(num_batches):
        buckets[order.bucket(number)] += 1
        for record in order.records(number):
            group = group_of(MIXTURE, record)
            assert group.bucket == order.bucket(number)
            parts[group.part] += 1
            per_record[group][record] += 1
    share = weights[0] / sum(weights)
    assert parts["a"] / parts.total() == pytest.approx(share, abs=0.02)
    assert buckets[(4, 8)] / num_batches == pytest.approx(0.4 * share, abs=0.02)
    shares = shares_of(MIXTURE, dict(zip("ab", weights, strict=True)))
    assert float(shares[(4, 8)]) == pytest.approx(0.4 * share)
    assert sum(shares.values()) == 1
    for counts in per_record.values():  # evenly within each group
        assert max(counts.values()) - min(counts.values()) <= 2


def test_a_mixture_of_one_bucket():
    groups = [Group((4, 4), 30, part="a"), Group((4, 4), 10, part="b")]
    order = make(groups, batch=4, weights={"a": 0.25, "b": 0.75})
    for number in range(20):  # the share is right in every batch
        assert sum(record >= 30 for record in order.records(number)) == 3
    plain = make(groups, batch=4, weights={"a": 0.75, "b": 0.25})
    assert sum(record >= 30 for record in plain.records(0)) == 1


def test_interleave_shares_every_stretch():
    shares = [3, 1, 5]
    places = [interleave(k, shares) for k in range(900)]
    for stream, share in enumerate(shares):
        own = [position for number, position in places if number == stream]
        assert own == list(range(100 * share))
    for start in range(0, 800, 37):
        counts = collections.Counter(number for number, _ in places[start : start + 90])
        for stream, share in enumerate(shares):
            assert abs(counts[stream] - 10 * share) <= 2


def test_late_positions_take_no_longer():
    """A table of a trillion positions could neither be kept nor walked through."""
    order = make([Group((i, 64), 10**7 + i) for i in range(1, 18)], batch=2048)
    start = time.perf_counter()
    buckets = {order.bucket(batch) for batch in range(10**12, 10**12 + 60)}
    assert order.record(2048 * 10**12) >= 0
    assert time.perf_counter() - start < 5
    assert len(buckets) > 10


@pytest.mark.parametrize("batch", [24, 60])
def test_a_bucket_smaller_than_a_batch_is_refused(batch):
    with pytest.raises(UserError) as error:
        make(batch=batch)
    message = str(error.value)
    assert f"got {batch} for" in message
    assert "23 of 8x4" in message
    assert ("37 of 4x8" in message) == (batch == 60)
    assert "choose at most 23" in message
    make(batch=23)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 200])
@pytest.mark.parametrize("num_records", [None, 160, 50, 1])
def test_in_turn(batch_size, num_records):
    """Every record once, in batches of one bucket; fewer are spread over buckets."""
    seen = []
    for numbers, counts in in_turn(
        BUCKETS, batch_size=batch_size, num_records=num_records
    ):
        assert len(numbers) == len(counts) == batch_size
        assert len({group_of(BUCKETS, number) for number in numbers}) == 1
        assert (numbers[~counts] == numbers[counts][-1]).all()
        seen += numbers[counts].tolist()
    assert seen == sorted(set(seen))
    assert len(seen) == (num_records or 160)
    starts = np.cumsum([0, 37, 100, 23])
    for start, group in zip(starts, BUCKETS, strict=False):
        own = [number for number in seen if start <= number < start + group.num_records]
        assert own == list(range(start, start + len(own)))  # the first ones
        expected = (num_records or 160) * group.num_records / 160
        assert abs(len(own) - expected) < 1


def test_subsets():
    subsets = subsets_of(MIXTURE)
    assert {name: sum(map(len, parts)) for name, parts in subsets.items()} == {
        "4x8": 400, "6x6": 1100, "8x4": 300, "a": 1000, "b": 800,
    }  # fmt: skip
    assert subsets["6x6"] == [range(400, 1000), range(1000, 1500)]
    assert subsets_of([Group((4, 4), 7)]) == {}


def test_small_buckets_are_noted(bucketed_root, tiny_root):
    note = note_on_small_buckets(shards.read_manifest(bucketed_root))
    assert "17 of 2x6, 30 of 4x4, 9 of 6x2 latents: train.global_batch_size" in note
    assert "at most 9." in note
    assert note_on_small_buckets(shards.read_manifest(tiny_root)) is None  # one bucket
