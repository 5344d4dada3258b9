# SPDX-License-Identifier: Apache-2.0
"""Records of several buckets under one numbering."""

import collections
import itertools
import json

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from rfjax.data import ShardsConfig, shards
from rfjax.data.joined import JoinedRecords
from rfjax.data.order import Group, groups_of
from rfjax.errors import UserError

SHAPES = ((2, 6, 4), (4, 4, 4), (6, 2, 4))


def test_records_are_numbered_bucket_by_bucket(bucketed_root):
    manifest = shards.read_manifest(bucketed_root)
    for split, counts in (("train", (17, 30, 9)), ("validation", (3, 5, 4))):
        records = shards.open_split(bucketed_root, split)
        assert len(records) == sum(counts)
        expected = [s for s, n in zip(SHAPES, counts, strict=True) for _ in range(n)]
        assert [record["latents"].shape for record in records] == expected
        assert [int(64 * r["latents"][0, 0, 0]) for r in records] == list(
            range(sum(counts))
        )
        assert groups_of(manifest, split) == tuple(
            Group(shape[:2], count) for shape, count in zip(SHAPES, counts, strict=True)
        )
    name = records.name_of(4)  # the second of the second bucket
    assert "record 1 of data file" in name
    assert "/4x4/1.0.0/bucketed-validation" in name
    with pytest.raises(IndexError):
        records[len(records)]
    with pytest.raises(IndexError):
        records[-1]


def test_tfds_opens_each_bucket(bucketed_root):
    manifest = shards.read_manifest(bucketed_root)
    ours = list(shards.open_split(bucketed_root, "train"))
    theirs = []
    for shape in manifest.latent.shapes:
        folder = shards.tfds_folder(bucketed_root, manifest, shape)
        theirs += tfds.builder_from_directory(folder).as_data_source("train")
    assert len(theirs) == len(ours)
    for mine, other in zip(ours, theirs, strict=True):
        assert set(mine) == set(other)
        assert all(
            (mine[name] == other[name]) is True or (mine[name] == other[name]).all()
            for name in mine
        )
    assert (ours[0]["context"] != theirs[1]["context"]).any()


def test_a_shard_of_an_unknown_bucket_is_refused(write_bucketed, tmp_path):
    write_bucketed(tmp_path / "data")
    path = tmp_path / "data" / "rfjax.json"
    fields = json.loads(path.read_text())
    shard = next(file for file in fields["files"] if file["split"])
    shard["bucket"] = [3, 5]
    path.write_text(json.dumps(fields))
    message = r"bucket of .*2x6.* must be one of latent.buckets .*, got \(3, 5\)"
    with pytest.raises(UserError, match=message):
        shards.open_split(tmp_path / "data", "train")


def test_joined_records_say_where_they_are():
    joined = JoinedRecords([["a", "b"], [], ["c"]])
    assert list(joined) == ["a", "b", "c"]
    assert joined.name_of(2) == "record 0"
    assert len(JoinedRecords([])) == 0


@pytest.fixture
def open_stream(bucketed_root):
    """(index, count, seed) -> a stream over three buckets; closed after the test."""
    streams = []

    def open_one(index=0, count=1, *, seed=0):
        config = ShardsConfig(str(bucketed_root), read_threads=2)
        streams.append(
            config.train_stream(
                global_batch_size=8, seed=seed, process_index=index, process_count=count
            )
        )
        return streams[-1]

    yield open_one
    for stream in streams:
        stream.close()


def rows_of(batches):
    """The rows of one global batch, in the order of their positions."""
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    order = np.argsort(joined.sample_index)
    return jax.tree.map(lambda leaf: leaf[order], joined)


def test_batches_are_of_one_bucket_and_as_announced(open_stream):
    stream = open_stream()
    announced = {spec.latents.shape for spec in stream.specs}
    assert announced == {(8, *shape) for shape in SHAPES}
    assert stream.largest_spec.latents.shape == (8, 4, 4, 4)
    seen = collections.Counter()
    for batch in itertools.islice(stream, 20):  # three epochs
        assert batch.latents.shape in announced
        seen[batch.latents.shape[1:]] += 1
    assert seen == {SHAPES[0]: 6, SHAPES[1]: 11, SHAPES[2]: 3}
    name = stream.name_of(int(batch.sample_index[0]))
    height, width, _ = batch.latents.shape[1:]
    assert f"/{height}x{width}/1.0.0/bucketed-train" in name


@pytest.mark.parametrize("count", [1, 2, 4])
def test_reading_goes_on_in_any_number_of_processes(open_stream, count):
    """After a kill, with the same global batches, of the same buckets."""
    whole = list(itertools.islice(open_stream(), 9))
    before = [open_stream(index, 2) for index in range(2)]
    for expected in whole[:4]:
        joined = rows_of([next(stream) for stream in before])
        jax.tree.map(np.testing.assert_array_equal, joined, rows_of([expected]))
    state = json.loads(json.dumps(before[1].get_state()))
    after = [open_stream(index, count) for index in range(count)]
    for stream in after:
        stream.set_state(state)
    for expected in whole[4:]:
        joined = rows_of([next(stream) for stream in after])
        jax.tree.map(np.testing.assert_array_equal, joined, rows_of([expected]))
    assert len({batch.latents.shape for batch in whole[4:]}) > 1
    other = list(itertools.islice(open_stream(seed=1), 9))  # control
    assert [b.latents.shape for b in other] != [b.latents.shape for b in whole]


def test_a_position_inside_of_a_batch_is_refused(open_stream):
    stream = open_stream()
    with pytest.raises(UserError, match="k >= 0, a multiple of the batch of 8, got"):
        stream.set_state({"global_next_index": 12})


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 4, 16])
def test_validation_reads_each_record_once_bucket_by_bucket(
    bucketed_root, batch_size, count
):
    config = ShardsConfig(str(bucketed_root))
    seen = []
    options = {"batch_size": batch_size, "process_count": count}
    for batches in zip(
        *(
            config.validation_batches(process_index=index, **options)
            for index in range(count)
        ),
        strict=True,
    ):
        for batch, valid in batches:
            numbers = (64 * batch.latents[:, 0, 0, 0]).astype(int)
            np.testing.assert_array_equal(batch.sample_index, numbers)
            seen += numbers[valid].tolist()
    assert seen == list(range(12))
    few = list(config.validation_batches(num_samples=6, **options))
    assert {batch.latents.shape[1:] for batch, _ in few} == set(SHAPES)
    first = list(config.validation_batches(only_first=True, **options))
    assert [batch.latents.shape[1:] for batch, _ in first] == list(SHAPES)
