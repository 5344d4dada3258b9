# SPDX-License-Identifier: Apache-2.0
"""Records of several buckets under one numbering."""

import json

import pytest
import tensorflow_datasets as tfds

from rfjax.data import shards
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
        assert [int(r["latents"][0, 0, 0]) for r in records] == list(range(sum(counts)))
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
