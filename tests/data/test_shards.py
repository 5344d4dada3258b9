# SPDX-License-Identifier: Apache-2.0
"""Writing and reading data sets, and what damaged ones get."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds

from rfjax.data import shards
from rfjax.data.manifest import (
    MANIFEST_FILE,
    EncoderSpec,
    LatentSpec,
    Manifest,
    TextSpec,
)
from rfjax.data.shards import check
from rfjax.data.shards.records import _byte_features

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def copy(tiny_root, tmp_path):
    """A data set that a test may damage."""
    return shutil.copytree(tiny_root, tmp_path / "copy")


def first_shard(root):
    return next(iter(sorted(root.rglob("tiny-train.array_record-*"))))


def edit_manifest(root, edit):
    path = root / MANIFEST_FILE
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))


# -- Round trips -------------------------------------------------------------------


def test_records_come_back_to_the_bit(tiny_root, tiny):
    source = shards.open_split(tiny_root, "train", full_check=True)
    assert len(source) == 37
    for index in (0, 9, 10, 36):  # around the shard borders
        written = tiny.record("train", index)
        read = source[index]
        for name in ("latents", "context", "pooled"):
            assert read[name].dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(
                read[name].view(np.uint16), written[name].view(np.uint16)
            )
        assert read["context_length"] == written["context_length"]
        assert read["caption"].decode() == written["caption"]
    assert not np.array_equal(source[0]["context"], source[1]["context"])


def test_it_is_a_genuine_tfds_data_set(tiny_root):
    builder = tfds.builder_from_directory(tiny_root / "tfds" / "tiny" / "1.0.0")
    assert builder.info.splits["train"].num_examples == 37
    assert builder.info.splits["train"].shard_lengths == [9, 9, 9, 10]
    assert builder.info.features["latents"].shape == (4, 4, 6)
    part = builder.as_data_source("train[:50%]")
    assert len(part) == 18


def test_features_of_a_record_are_always_in_the_same_order(tiny_root):
    """Left to protobuf, the order and so all checksums differ between processes."""
    for raw in shards.open_split(tiny_root, "train")._raw:
        names = [name for name, _, _ in _byte_features(raw)]
        # As its C library sorts them.
        assert names == [
            "annotation", "caption", "context_length", "context", "latents", "pooled"
        ]  # fmt: skip


def test_unpadded_contexts_keep_their_own_length(tiny, tmp_path):
    tiny.write(tmp_path / "unpadded", layout="unpadded")
    source = shards.open_split(tmp_path / "unpadded", "train")
    assert {len(source[index]["context"]) for index in range(8)} == {2, 3, 4, 5}


SHAPES = ((2, 8, 6), (4, 4, 6), (8, 2, 6))


def make_everything(tiny):
    """A manifest of several buckets, encoders and captions, and some records of it."""
    encoders = (
        EncoderSpec("a", "test", 8, 5, 6, prefix="a_"),
        EncoderSpec("b", "test", 7, 3, 0, prefix="b_"),
        EncoderSpec("c", "test", 0, 3, 4, prefix="c_"),
    )
    manifest = tiny.manifest(
        splits={"train": 7, "validation": 2},
        latent=LatentSpec(
            shape=(4, 4, 6),
            codec="patch_pca",
            has_variance=True,
            buckets=tuple(shape[:2] for shape in SHAPES),
        ),
        text=TextSpec(encoders=encoders, captions=("original", "synthetic")),
    )
    rng = np.random.default_rng(0)

    def bf16(*shape):
        return rng.standard_normal(shape).astype(ml_dtypes.bfloat16)

    def record(shape, has_second):
        record = {
            "latents": bf16(*shape),
            "log_variance": bf16(*shape),
            "caption": "first",
            "synthetic": "second" if has_second else "",
            "annotation": "{}",
        }
        for prefix, rows in (("", 5), ("synthetic_", 5 * has_second)):
            record |= {
                f"{prefix}a_context": bf16(rows, 8),
                f"{prefix}a_context_length": np.int32(4 if rows else 0),
                f"{prefix}a_pooled": bf16(6),
                f"{prefix}b_context": bf16(min(rows, 3), 7),
                f"{prefix}b_context_length": np.int32(2 if rows else 0),
                f"{prefix}c_pooled": bf16(4),
            }
        return record

    shapes = [SHAPES[0]] * 3 + [SHAPES[2]] * 4
    train = [record(shape, place % 2) for place, shape in enumerate(shapes)]
    validation = [record(SHAPES[1], 1), record(SHAPES[2], 0)]
    return manifest, {"train": train, "validation": validation}


def test_buckets_variances_encoders_and_captions_come_back(tiny, tmp_path):
    manifest, examples = make_everything(tiny)
    written = tiny.write(
        tmp_path / "all",
        manifest=manifest,
        examples=examples,
        empty_caption={"a_context_length": 1},
        records_per_shard=2,
    )
    assert (
        Manifest.from_json((tmp_path / "all" / MANIFEST_FILE).read_bytes()) == written
    )
    shards.check_features(tmp_path / "all", written)
    read = {"train": [], "validation": []}
    for shape in SHAPES:
        builder = tfds.builder_from_directory(
            shards.tfds_folder(tmp_path / "all", manifest, shape)
        )
        for split, records in read.items():
            if split in builder.info.splits:
                records += builder.as_data_source(split=split)
    for split, records in examples.items():
        assert len(read[split]) == len(records)
        for found, expected in zip(read[split], records, strict=True):
            for name, value in expected.items():
                value = value.encode() if isinstance(value, str) else value
                np.testing.assert_array_equal(found[name], value)
    counts = [(f.split, f.bucket, f.num_records) for f in written.files if f.split]
    assert counts[:4] == [
        ("train", (2, 8), 1),
        ("train", (2, 8), 2),
        ("train", (8, 2), 2),
        ("train", (8, 2), 2),
    ]
    assert counts[4:] == [("validation", (4, 4), 1), ("validation", (8, 2), 1)]


@pytest.mark.parametrize(
    ("name", "edit", "problem"),
    [
        ("latents", lambda v: v[:1], r"latents must be \(4, 4, 6\)"),
        ("log_variance", lambda v: v * np.float32(np.nan), "log_variance must be"),
        ("log_variance", lambda v: v * v.dtype.type(1e9), "log_variance holds"),
        ("b_context", lambda v: v[:2], r"b_context must be \(3, 7\)"),
        (
            "c_pooled",
            lambda v: v * v.dtype.type(np.inf),
            "c_pooled holds .* not finite",
        ),
        ("synthetic", lambda v: b"", "synthetic_a_context_length is 4, outside 0..0"),
        ("synthetic_a_context_length", lambda v: np.int32(0), "is 0, outside 1..5"),
        ("synthetic_c_pooled", lambda v: v[:1], "synthetic_c_pooled must be"),
    ],
)
def test_what_is_wrong_with_a_record_of_several_captions(tiny, name, edit, problem):
    manifest, examples = make_everything(tiny)
    for record in (*examples["train"], *examples["validation"]):
        record |= {k: v.encode() for k, v in record.items() if isinstance(v, str)}
        assert shards.problems_of_record(record, manifest) == []
    record = examples["train"][1]
    problems = shards.problems_of_record(record | {name: edit(record[name])}, manifest)
    assert re.search(problem, problems[0])


def test_manifest_round_trip(tiny_root, tiny):
    manifest = shards.read_manifest(tiny_root)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert dataclasses.replace(manifest, files=()) == tiny.manifest()
    assert manifest.latent_shape == (4, 4, 6)
    assert manifest.context_shape == (5, 8)
    assert manifest.pooled_dim == 6
    paths = {file.path for file in manifest.files}
    on_disk = {
        path.relative_to(tiny_root).as_posix()
        for path in tiny_root.rglob("*")
        if path.is_file()
    }
    assert paths | {MANIFEST_FILE} == on_disk
    assert sum(f.num_records for f in manifest.files if f.split == "train") == 37


def test_a_manifest_of_an_older_version_is_read_and_written_as_it_was():
    """To the letter: runs know their data by the hash of this text."""
    text = (GOLDEN / "manifest_0_1.json").read_text()
    manifest = Manifest.from_json(text)
    assert manifest.latent == LatentSpec(shape=(8, 8, 16), codec="patch_pca")
    assert manifest.creation["grade"] == "emoji"
    assert manifest.to_json() == text
    scaled = text.replace('"scale": 1.0', '"scale": 2.0')
    with pytest.raises(ValueError, match=r"latent\.scale of .* must be 1\.0, got 2\.0"):
        Manifest.from_json(scaled)


def test_empty_caption_and_codec(tiny_root, tiny):
    empty = shards.read_empty_caption(tiny_root)
    np.testing.assert_array_equal(empty["context"], tiny.empty_caption["context"])
    assert empty["context"].dtype == empty["pooled"].dtype == ml_dtypes.bfloat16
    assert empty["context_length"] == 2
    assert empty["context_length"].dtype == np.int32
    pictures = shards.read_codec(tiny_root).decode(np.zeros((1, 4, 4, 6)))
    assert pictures.shape == (1, 8, 8, 3)


def test_an_empty_folder_may_be_the_target(tiny, tmp_path):
    (tmp_path / "target").mkdir()
    tiny.write(tmp_path / "target")
    shards.check_shards(tmp_path / "target", full=True)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


# -- Bad input ---------------------------------------------------------------------


def test_target_not_empty(tiny_root, tiny):
    before = (tiny_root / MANIFEST_FILE).read_bytes()
    with pytest.raises(
        ValueError, match="out must be a new or empty folder.*another name"
    ):
        tiny.write(tiny_root)
    assert (tiny_root / MANIFEST_FILE).read_bytes() == before


@pytest.mark.parametrize(("count", "problem"), [(5, "ended early"), (38, "has more")])
def test_nothing_is_left_of_a_failed_write(tiny, tmp_path, count, problem):
    examples = [tiny.record("train", index) for index in range(count)]
    with pytest.raises(ValueError, match=f"announced with 37 examples .* {problem}"):
        tiny.write(
            tmp_path / "target", examples={"train": examples, "validation": examples}
        )
    assert list(tmp_path.iterdir()) == []


def test_empty_split(tiny, tmp_path):
    manifest = tiny.manifest(splits={"train": 37, "validation": 0})
    with pytest.raises(ValueError, match="split validation .* at least 1 .* got 0"):
        tiny.write(tmp_path / "target", manifest=manifest)
    assert list(tmp_path.iterdir()) == []


def test_folder_missing(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="does not exist; name .* make it with `rfjax"
    ):
        shards.open_split(tmp_path / "nowhere", "train")


def test_folder_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match="is empty, so it is not a data set"):
        shards.open_split(tmp_path, "train")


def test_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FileNotFoundError, match="holds no rfjax.json"):
        shards.open_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"must be JSON, got nothing"),
        (b"{", r"must be JSON, got '{'"),
        (b"[1]", r"must hold a JSON object, got '\[1\]'"),
        (b"\xff\xfe", r"must be JSON, got"),
        (b"[" * 100_000, r"must be JSON, got .*recursion"),
        (b"{}", r"version of .*rfjax\.json must be 1, got None"),
        (b'{"version": 1}', r"must have the fields of a manifest: name must be set"),
    ],
)
def test_manifest_that_is_none(copy, content, message):
    (copy / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        shards.read_manifest(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, r"version of .* must be 1, got 99"),
        ({"latent": [8, 8]}, r"latent must be a section of fields"),
        ({"latent": {"shape": [8, 8], "codec": "none"}}, r"shape must be a list"),
        ({"latent": {"shape": [8, 0, 4], "codec": "none"}}, r"shape\[1\] must be"),
        ({"text": None}, r"text must be a section of fields"),
        ({"text": {"encoders": [{}]}}, r"text\.encoders\[0\]\.name must be set"),
        ({"splits": ["train"]}, r"splits must be a section"),
        ({"splits": {"train": "37"}}, r"splits\.train must be a whole number"),
        ({"files": [{"path": 3}]}, r"files\[0\]\."),
        ({"colour": "blue"}, r"colour is not a config field"),
        ({"creation": "by hand"}, r"creation must be a section"),
    ],
)  # fmt: skip
def test_manifest_with_other_fields(copy, change, message):
    edit_manifest(copy, lambda fields: fields.update(change))
    with pytest.raises(ValueError, match=message):
        shards.read_manifest(copy)


def test_shard_missing(copy):
    first_shard(copy).unlink()
    with pytest.raises(FileNotFoundError, match="is named in rfjax.json but missing"):
        shards.open_split(copy, "train")


def test_shard_truncated(copy):
    shard = first_shard(copy)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match="must have .* bytes, has .*truncated"):
        shards.open_split(copy, "train")


def test_shard_altered(copy):
    shard = first_shard(copy)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    shards.check_shards(copy, full=False)  # the size is right
    with pytest.raises(ValueError, match="does not match its SHA-256 checksum"):
        shards.check_shards(copy, full=True)
    # Small data sets are checked in full by default, large ones are not.
    with pytest.raises(ValueError, match="checksum"):
        shards.check_shards(copy)


def test_of_a_large_data_set_only_shards_are_checked_by_size(copy, monkeypatch):
    monkeypatch.setattr(check, "FULL_CHECK_BYTES", 1)
    shard = first_shard(copy)
    shard.write_bytes(b"x" * shard.stat().st_size)
    shards.check_shards(copy)
    codec = copy / shards.CODEC_FILE
    codec.write_bytes(b"x" * codec.stat().st_size)
    with pytest.raises(ValueError, match=r"codec\.npz does not match its SHA-256"):
        shards.check_shards(copy)


@pytest.mark.parametrize("read", [shards.read_codec, shards.read_empty_caption])
def test_codec_and_empty_caption_are_verified_wherever_they_are_read(copy, read):
    read(copy)
    for name in (shards.CODEC_FILE, shards.EMPTY_CAPTION_FILE):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"\.npz does not match its SHA-256 checksum"):
        read(copy)


def test_a_flipped_bit_in_a_shard_names_shard_and_record(copy, monkeypatch):
    """Every record that is read is the record that was written, or is named."""
    monkeypatch.setattr(check, "FULL_CHECK_BYTES", 1)
    shard = first_shard(copy)
    whole = shard.read_bytes()
    names, rng = [], np.random.default_rng(0)
    source = shards.open_split(copy, "train")
    expected = [source[index]["latents"].tobytes() for index in range(10)]
    # Ten records of some 350 bytes each; the rest of the file is padding.
    for position in rng.integers(3000, size=40).tolist():
        content = bytearray(whole)
        content[position] ^= 1 << int(rng.integers(8))
        shard.write_bytes(content)
        try:
            source = shards.open_split(copy, "train")
            read = [source[index]["latents"].tobytes() for index in range(10)]
        except ValueError as error:
            names.append(str(error))
            continue
        assert read == expected
    assert len(names) > 20
    for name in names:
        assert re.match(
            rf"record \d of data file {shard} is damaged .*; .* it again", name
        )


def test_counts_that_differ(copy):
    edit_manifest(copy, lambda fields: fields["splits"].update(train=40))
    with pytest.raises(ValueError, match="must hold 40 records, its shards hold 37"):
        shards.open_split(copy, "train")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda fields: fields["latent"].update(shape=[8, 8, 6]),
            r"feature latents .* must be \(8, 8, 6\) bfloat16 .* \(\(4, 4, 6\)",
        ),
        (
            lambda fields: fields["text"]["encoders"][0].update(context_dim=9),
            r"feature context .* must be \(5, 9\)",
        ),
        (
            lambda fields: fields["text"]["encoders"][0].update(prefix="clip_"),
            "feature clip_context .* records have None",
        ),
    ],
)
def test_shapes_that_differ_from_the_manifest(copy, edit, message):
    edit_manifest(copy, edit)
    with pytest.raises(ValueError, match=message):
        shards.open_split(copy, "train")


def test_unknown_split(tiny_root):
    with pytest.raises(ValueError, match=r"no split 'test'; choose one of \['train'"):
        shards.open_split(tiny_root, "test")


def test_unknown_codec(copy):
    edit_manifest(copy, lambda fields: fields["latent"].update(codec="magic"))
    with pytest.raises(ValueError, match=r"one of \[.*'patch_pca'\] .* got 'magic'"):
        shards.read_codec(copy)
