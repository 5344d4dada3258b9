# SPDX-License-Identifier: Apache-2.0
"""Several data sets read as one."""

import collections
import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from rfjax import schema
from rfjax.checksums import digest
from rfjax.data import DATASETS, ShardsConfig, trained_on
from rfjax.data.manifest import LatentSpec
from rfjax.errors import MissingFileError, UserError

SQUARE = LatentSpec(shape=(4, 4, 4), codec="patch_pca")


@pytest.fixture(scope="module")
def folders(write_bucketed, tmp_path_factory):
    """One data set with three buckets; one of squares, with other records."""
    root = tmp_path_factory.mktemp("parts")
    write_bucketed(root / "first")
    write_bucketed(
        root / "second",
        train=(0, 25, 0),
        validation=(0, 6, 0),
        seed=1,
        name="squares",
        latent=SQUARE,
    )
    return root


@pytest.fixture
def make(folders):
    def make(*weights, root=folders, **options):
        paths = [root / "first", root / "second"]
        parts = [
            {"path": str(path), "weight": weight}
            for path, weight in zip(paths, weights or (0.25, 0.75), strict=True)
        ]
        fields = {"kind": "mixture", "parts": parts, "caption_dropout": 0.0, **options}
        return schema.build_kind(DATASETS, fields, name="data")

    return make


def record_of(folders, batch, row):
    """(part, number) of a row, by comparing its latents with those of the shards."""
    number = int(64 * batch.latents[row, 0, 0, 0])
    for part in ("first", "second"):
        records = ShardsConfig(str(folders / part)).records("train")
        if number < len(records):
            stored = records[number]["latents"]
            if np.array_equal(stored, batch.latents[row].astype(stored.dtype)):
                return part, number
    raise AssertionError("no such record")


def take(config, count, *, index=0, processes=1, seed=0, state=None):
    stream = config.train_stream(
        global_batch_size=8, seed=seed, process_index=index, process_count=processes
    )
    if state is not None:
        stream.set_state(state)
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches, stream.get_state()


def test_examples_come_by_weight(folders, make):
    """Bucket 2x6 and 6x2 are of the first part alone, with their share of it."""
    batches, _ = take(make(0.25, 0.75), 50)
    parts, records = collections.Counter(), collections.Counter()
    for batch in batches:
        for row in range(0, 8, 2):
            part, number = record_of(folders, batch, row)
            parts[part] += 1
            records[part, number] += 1
    assert parts["first"] / parts.total() == pytest.approx(0.25, abs=0.06)
    buckets = collections.Counter(batch.latents.shape[1:3] for batch in batches)
    assert buckets[2, 6] == pytest.approx(50 * 0.25 * 17 / 56, abs=1.5)
    assert buckets[4, 4] == pytest.approx(50 * (0.75 + 0.25 * 30 / 56), abs=2)
    other, _ = take(make(0.75, 0.25), 50)
    assert collections.Counter(b.latents.shape[1:3] for b in other)[4, 4] < 38


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_mixture_goes_on_in_any_number_of_processes(make, count):
    whole, _ = take(make(), 6)
    _, state = take(make(), 2, index=1, processes=2)
    parts = [
        take(make(), 4, index=index, processes=count, state=state)[0]
        for index in range(count)
    ]
    for number, expected in enumerate(whole[2:]):
        rows = jax.tree.map(
            lambda *leaves: np.stack(leaves, axis=1).reshape(-1, *leaves[0].shape[1:]),
            *(part[number] for part in parts),
        )
        jax.tree.map(np.testing.assert_array_equal, rows, expected)
    assert not np.array_equal(whole[0].sample_index, whole[1].sample_index)  # control


def test_validation_reads_all_parts_once(make):
    config = make()
    batches = list(config.validation_batches(batch_size=4))
    numbers = [n for batch, valid in batches for n in batch.sample_index[valid]]
    assert numbers == list(range(12 + 6))
    own = [int(64 * x) for b, v in batches for x in b.latents[v, 0, 0, 0]]
    assert own == [*range(12), *range(6)]
    assert {g.part for g in config.groups("validation")} == {"bucketed", "squares"}


def test_the_manifest_names_all_parts(make, folders):
    manifest = make().manifest()
    assert manifest.splits == {"train": 56 + 25, "validation": 12 + 6}
    assert manifest.latent.buckets == ((2, 6), (4, 4), (6, 2))
    assert manifest.name == "bucketed_and_squares"
    first = digest((folders / "first" / "rfjax.json").read_text())
    assert manifest.creation["parts"][0] == {
        "name": "bucketed",
        "weight": 0.25,
        "data": first,
    }
    hashes = {digest(make(*w).manifest().to_json()) for w in ((1, 3), (1, 3), (3, 1))}
    assert len(hashes) == 2
    swapped = dataclasses.replace(make(), parts=make().parts[::-1])
    assert swapped.manifest().to_json() != manifest.to_json()
    assert len(make().codec().gain) == 4
    make().check()


def copy_with(folders, tmp_path, edit):
    """Both data sets, the second with another manifest."""
    shutil.copytree(folders, tmp_path / "parts")
    path = tmp_path / "parts" / "second" / "rfjax.json"
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))
    return tmp_path / "parts"


def set_codec_hash(fields):
    (codec,) = [file for file in fields["files"] if file["path"] == "codec.npz"]
    codec["sha256"] = "0" * 64


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: f["latent"].update(codec="none"), r"latent.codec 'patch_pca' in"),
        (lambda f: f["latent"].update(shape=[4, 4, 8]), r"latent.shape \(4, 4, 4\) in"),
        (lambda f: f["latent"].update(codec_scale=2.0), r"latent.codec_scale None in"),
        (
            lambda f: f["text"]["encoders"][0].update(length=4),
            r"text.encoders.0.length 3 in .*first and 4 in .*second",
        ),
        (lambda f: f["text"].update(layout="unpadded"), r"text.layout 'padded' in"),
        (lambda f: f["text"].update(captions=["a", "b"]), r"text.captions \(\) in"),
        (set_codec_hash, r"codec.npz \['[0-9a-f]{64}'\] in .* and \['0{64}'\] in"),
        (
            lambda f: f.update(name="bucketed"),
            r"different names .*, got bucketed, buck",
        ),
    ],
)
def test_parts_that_were_encoded_otherwise(folders, make, tmp_path, edit, message):
    config = make(root=copy_with(folders, tmp_path, edit))
    with pytest.raises(UserError, match=rf"data.parts must have .*{message}"):
        config.manifest()


def test_another_empty_caption_is_refused(write_bucketed, folders, make, tmp_path):
    shutil.copytree(folders, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "second")
    write_bucketed(
        tmp_path / "parts" / "second",
        train=(0, 9, 0),
        validation=(0, 2, 0),
        name="squares",
        latent=SQUARE,
        empty=2.0,
    )
    config = make(root=tmp_path / "parts")
    message = r"must have the same empty caption, and those of .*first.* differ in pool"
    with pytest.raises(UserError, match=message):
        config.train_stream(global_batch_size=8, seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parts": []}, r"data.parts must hold at least one data set, got none"),
        ({"parts": "data/emoji"}, r"data.parts must be a list, got 'data/emoji'"),
        ({"parts": ["d"]}, r"data.parts\[0\] must be a section of fields, got 'd'"),
        ({"parts": [{"weight": 1.0}]}, r"data.parts\[0\].path must be set"),
        ({"parts": [{"path": "d", "weight": 0}]}, r"weight must be positive, got 0"),
        ({"parts": [{"path": "d", "weight": -1.0}]}, r"weight must be positive"),
        ({"parts": [{"path": "d", "weight": "much"}]}, r"weight must be a number"),
        ({"parts": [{"path": "d", "wieght": 1}]}, r"did you mean data.parts\[0\].weig"),
        ({}, r"data.parts must be set"),
    ],
)
def test_wrong_parts(fields, message):
    with pytest.raises(UserError, match=message):
        schema.build_kind(DATASETS, {"kind": "mixture", **fields}, name="data")


def test_a_part_that_is_missing_is_named(make, tmp_path):
    with pytest.raises(MissingFileError, match=r"data folder .*first does not exist"):
        make(root=tmp_path).manifest()


def test_the_parts_of_a_run_are_found_where_they_are_now(folders, make, tmp_path):
    config = make()
    record = {
        "data_hash": digest(config.manifest().to_json()),
        "data_path": [str(folders / "first"), str(folders / "second")],
    }
    gone = make(root=tmp_path / "gone")
    found, _ = trained_on.find(gone, record)
    assert found.folders() == config.folders()
    shutil.copytree(folders, tmp_path / "there")
    found, _ = trained_on.find(gone, record, given=str(tmp_path / "there"))
    assert found.folders() == (
        str(tmp_path / "there" / "first"),
        str(tmp_path / "there" / "second"),
    )
    with pytest.raises(MissingFileError, match=r"name it with --data=DIR"):
        trained_on.find(gone, record | {"data_path": None})
