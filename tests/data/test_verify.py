# SPDX-License-Identifier: Apache-2.0
"""Verification of a data set lists all that is wrong with it, and stops at nothing."""

import dataclasses
import hashlib
import json
import shutil
import sys

import ml_dtypes
import numpy as np
import pytest

from rfjax.commands.verify import verify as verify_command
from rfjax.data import shards
from rfjax.data.manifest import MANIFEST_FILE, LatentSpec, TextSpec
from rfjax.data.verify import MOST_PROBLEMS, verify
from rfjax.encoders import text

SHARD = "tfds/tiny/1.0.0/tiny-train.array_record-00000-of-00004"  # 9 records


@dataclasses.dataclass(frozen=True)
class WordsConfig:
    """A text encoder whose states are random numbers, decided by the caption."""

    length: int = 5
    context_dim = 8
    pooled_dim = 6

    def make(self):
        return self

    def encode(self, captions):
        rngs = [np.random.default_rng(list(caption.encode())) for caption in captions]
        lengths = [min(2 + len(caption.split()), self.length) for caption in captions]
        return text.EncodedText(
            context=np.stack([rng.normal(size=(self.length, 8)) for rng in rngs]),
            context_length=np.array(lengths, np.int32),
            pooled=np.stack([rng.normal(size=6) for rng in rngs]),
        )


def features_of(caption):
    states = WordsConfig().encode([caption])
    return {
        "context": states.context[0].astype(ml_dtypes.bfloat16),
        "context_length": states.context_length[0],
        "pooled": states.pooled[0].astype(ml_dtypes.bfloat16),
    }


@pytest.fixture(autouse=True)
def words(monkeypatch):
    monkeypatch.setitem(text.TEXT_ENCODERS, "test", WordsConfig)


@pytest.fixture
def write(tiny, tmp_path):
    """Writes a sound data set, but for what `change` does to its records."""

    def make(change=lambda record, split, index: None, **options):
        def record_of(split, index):
            record = tiny.record(split, index)
            rng = np.random.default_rng((len(split), index))
            latents = rng.standard_normal(record["latents"].shape)
            record |= features_of(record["caption"])
            record["latents"] = latents.astype(ml_dtypes.bfloat16)
            change(record, split, index)
            return record

        arguments = {
            "examples": {
                split: [record_of(split, index) for index in range(count)]
                for split, count in tiny.splits.items()
            },
            "empty_caption": features_of(""),
        }
        tiny.write(tmp_path / "data", **arguments | options)
        return tmp_path / "data"

    return make


def rewrite(root, name, content):
    """Replaces a file, and its checksum in the manifest."""
    (root / name).write_bytes(content)
    fields = json.loads((root / MANIFEST_FILE).read_text())
    for file in fields["files"]:
        if file["path"] == name:
            file |= {
                "num_bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
    (root / MANIFEST_FILE).write_text(json.dumps(fields))


def edit_manifest(root, edit):
    fields = json.loads((root / MANIFEST_FILE).read_text())
    edit(fields)
    (root / MANIFEST_FILE).write_text(json.dumps(fields))


@pytest.mark.parametrize("layout", ["padded", "unpadded"])
def test_a_sound_data_set_has_no_problems(write, tiny, layout, tmp_path):
    def shorten(record, split, index):
        if layout == "unpadded":
            record["context"] = record["context"][: record["context_length"]]

    root = write(shorten, manifest=tiny.manifest(layout))
    found = verify_command(data=root)
    assert str(found).endswith("verified"), str(found)
    assert found.exit_status == 0
    assert (root / "contact_sheet.png").is_file()
    assert "NOTE" not in str(found)


def test_every_bad_record_is_listed_by_shard_and_number(write):
    def spoil(record, split, index):
        record["latents"] = record["latents"] * 3 + 1
        record["caption"] = f"caption {index}"
        record |= features_of(record["caption"])
        if split == "train":
            if index in (5, 12):
                record["context"] = np.full_like(record["context"], np.nan)
            if index == 6:
                record["context_length"] = np.int32(9)
            if index == 7:
                record["latents"][0, 0, 1] = np.inf
            if index == 8:
                record["latents"][0, 0, 1] = 1e30
                record["pooled"][3] = -1e20
            if index == 10:
                record["annotation"] = "{"

    root = write(spoil)
    report = verify(root, picture=root / "sheet.png")
    assert report.problems == (
        f"latents of train have mean {report.latent_mean:.3f} instead of 0.",
        f"latents of train have variance {report.latent_variance:.3f} instead of 1.",
        "11 captions are in train and validation, e.g. 'caption 0'.",
        f"record 5 of {SHARD}: context holds values that are not finite.",
        f"record 6 of {SHARD}: context_length is 9, outside 1..5.",
        f"record 7 of {SHARD}: latents holds values that are not finite.",
        f"record 8 of {SHARD}: latents holds 1e+30; at most 1000 is plausible.",
        f"record 8 of {SHARD}: pooled holds 9.97e+19; at most 100000 is plausible.",
        f"record 1 of {SHARD.replace('00000', '00001', 1)}: annotation is neither "
        "empty nor JSON.",
        f"record 3 of {SHARD.replace('00000', '00001', 1)}: context holds values that "
        "are not finite.",
    )
    assert report.latent_mean == pytest.approx(1, abs=0.05)
    assert report.latent_variance == pytest.approx(9, rel=0.05)
    assert str(report).endswith("10 problems")
    assert not (root / "sheet.png").exists()


def test_moments_are_those_of_latents_as_they_are_drawn(write, tiny):
    def narrow(record, split, index):
        record["latents"] = (record["latents"] * 0.6).astype(ml_dtypes.bfloat16)
        variances = np.full(record["latents"].shape, 0.64)
        record["log_variance"] = np.log(variances).astype(ml_dtypes.bfloat16)

    def latent(**fields):
        shape = tiny.manifest().latent.shape
        return tiny.manifest(latent=LatentSpec(shape, "patch_pca", **fields))

    root = write(narrow, manifest=latent(has_variance=True))
    report = verify(root, picture=root / "sheet.png")
    assert report.latent_variance == pytest.approx(1, abs=0.05)
    assert report.ok, str(report)
    assert "bfloat16 with log-variance, mean" in str(report)
    assert (root / "sheet.png").is_file()
    shutil.rmtree(root)

    def without(record, split, index):
        narrow(record, split, index)
        del record["log_variance"]

    (problem,) = verify(write(without)).problems  # control
    assert problem.startswith("latents of train have variance 0.3")
    shutil.rmtree(root)
    # The scale of an autoencoder is fixed, whatever pictures it is given.
    report = verify(write(without, manifest=latent(codec_scale=1.5, codec_shift=0.0)))
    assert report.ok
    assert report.notes == (problem,)


def test_records_without_captions_share_none(write):
    def strip(record, split, index):
        record["caption"] = ""
        record |= features_of("")

    assert verify(write(strip)).ok


def test_damaged_files_do_not_hide_what_the_others_hold(write):
    root = write()
    shard = root / SHARD
    shard.write_bytes(bytes(shard.stat().st_size))
    second = root / SHARD.replace("00000", "00001", 1)
    content = bytearray(second.read_bytes())
    content[700] ^= 1  # in a record, and the rest of the file is padding
    second.write_bytes(content)
    (root / SHARD.replace("00000", "00002", 1)).unlink()
    (root / shards.CODEC_FILE).write_bytes(b"x")
    found = verify_command(data=root)
    problems = found.damage[str(root)]
    assert found.exit_status == 1
    assert sum("does not match its SHA-256" in problem for problem in problems) == 2
    assert any(
        "00002-of-00004 is named in rfjax.json but missing" in p for p in problems
    )
    assert any("codec.npz must have" in problem for problem in problems)
    records = [problem for problem in problems if problem.startswith("record")]
    assert [int(problem.split()[1]) for problem in records[:9]] == list(range(9))
    assert len(records) == 10
    assert str(second) in records[9]
    assert "train       37 examples, 18 captions" in str(found)
    assert not (root / "contact_sheet.png").exists()


def test_a_long_list_is_cut_when_it_is_printed(write):
    def spoil(record, split, index):
        record["latents"][0, 0, 0] = np.nan
        record["pooled"][0] = np.nan

    report = verify(write(spoil))
    bad = [problem for problem in report.problems if problem.startswith("record")]
    assert len(bad) == 2 * 48
    text_of = str(report)
    assert text_of.count("PROBLEM") == MOST_PROBLEMS
    assert f"and {len(report.problems) - MOST_PROBLEMS} more" in text_of


def npz(**arrays):
    import io

    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def empty(**changes):
    features = {
        name: value.astype(np.float32) if name != "context_length" else value
        for name, value in features_of("").items()
    }
    return npz(**features | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (empty(pooled=np.full(6, np.nan, np.float32)), "pooled holds values that are"),
        (empty(context=np.full((5, 8), 1e30, np.float32)), "context holds 1e"),
        (empty(context=np.ones((2, 8), np.float32)), r"context must be \(5, 8\) bf"),
        (
            empty(pooled=np.ones(7, np.float32)),
            r"pooled must be \(6,\) bf.* got \(7,\)",
        ),
        (empty(context_length=np.int32(6)), r"context_length is 6, outside 1\.\.5"),
        (empty(context_length=np.float32(2)), "context_length must be a whole number"),
        (npz(context=np.ones((5, 8))), "context_length must be a whole number, got no"),
        (npz(context=np.array([{}])), "cannot be read .*allow_pickle"),
        (b"junk", "cannot be read"),
        (empty()[:-40], "cannot be read"),
    ],
)
def test_an_empty_caption_that_is_none(write, content, message):
    root = write()
    rewrite(root, shards.EMPTY_CAPTION_FILE, content)
    report = verify(root)
    assert len(report.problems) == 1
    with pytest.raises(ValueError, match=message) as error:
        shards.read_empty_caption(root)
    assert report.problems == (str(error.value),)
    assert "\n" not in str(error.value)


def test_states_of_another_encoder_are_found(write):
    root = write(empty_caption=features_of("another caption"))
    assert verify(root).problems == (
        "the empty caption: text states are not what test makes of ''.",
    )
    shutil.rmtree(root)

    def swap(record, split, index):
        if split == "train" and index == 9:
            record |= features_of("another caption")

    (problem,) = verify(write(swap)).problems
    assert problem.startswith(f"record 0 of {SHARD.replace('00000', '00001', 1)}: text")


def test_pooled_vectors_without_tokens_are_compared(write, tiny, monkeypatch):
    class PooledConfig(WordsConfig):
        context_dim = 0

        def encode(self, captions):
            encoded = super().encode(captions)
            return dataclasses.replace(encoded, context=encoded.context[..., :0])

    def drop_tokens(record, split, index):
        del record["context"], record["context_length"]
        if split == "train" and index == 9:
            record["pooled"] = -record["pooled"]

    monkeypatch.setitem(text.TEXT_ENCODERS, "test", PooledConfig)
    (encoder,) = tiny.manifest().text.encoders
    spec = TextSpec(encoders=(dataclasses.replace(encoder, context_dim=0),))
    root = write(
        drop_tokens,
        manifest=dataclasses.replace(tiny.manifest(), text=spec),
        empty_caption={"pooled": features_of("")["pooled"]},
    )
    (problem,) = verify(root).problems
    assert problem.endswith("are not what test makes of 'train 9 é'."), problem


def test_encoders_are_compared_with_what_the_manifest_says(write, monkeypatch):
    root = write()
    monkeypatch.setattr(WordsConfig, "context_dim", 16)
    assert verify(root).problems == (
        "context_dim of text encoder test must be 16, which test makes, got 8.",
    )
    edit_manifest(root, lambda fields: fields["text"]["encoders"][0].update(kind="t6"))
    report = verify(root)
    assert report.ok
    assert "states of test are not compared: its kind 't6' is none of" in str(report)
    edit_manifest(
        root,
        lambda fields: fields["text"]["encoders"].extend(fields["text"]["encoders"]),
    )
    assert any("name of text.encoders must differ" in p for p in verify(root).problems)


HARMLESS = "tensorflow_datasets.core.features.text_feature.Text"


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.update(pythonClassName="harmful.Feature"),
        lambda fields: fields["featuresDict"]["features"]["latents"].update(
            pythonClassName="harmful.Feature"
        ),
        lambda fields: fields["featuresDict"]["features"].update(
            extra={"pythonClassName": "harmful.Feature"}
        ),
        lambda fields: fields["featuresDict"]["features"].update(
            extra={"python_class_name": "harmful.Feature"}
        ),
        lambda fields: fields["featuresDict"]["features"].update(
            extra={"type": "harmful.Feature", "content": {}}
        ),
    ],
)
def test_features_import_nothing(write, monkeypatch, tmp_path, change):
    (tmp_path / "harmful.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    root = write()
    name = "tfds/tiny/1.0.0/features.json"
    fields = json.loads((root / name).read_text())
    harmless = fields["featuresDict"]["features"] | {
        "extra": {"pythonClassName": HARMLESS, "text": {}}
    }
    sound = fields | {"featuresDict": {"features": harmless}}
    rewrite(root, name, json.dumps(sound).encode())
    assert len(shards.open_split(root, "train")) == 37  # control
    change(fields)
    rewrite(root, name, json.dumps(fields).encode())
    with pytest.raises(ValueError, match="pythonClassName of .* must be one of tens"):
        shards.open_split(root, "train")
    assert "pythonClassName of" in verify(root).problems[0]
    assert "harmful" not in sys.modules


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"featuresDict": {}}', "\xff"])
def test_features_that_are_none(write, content):
    root = write()
    rewrite(root, "tfds/tiny/1.0.0/features.json", content.encode("latin1"))
    with pytest.raises(ValueError, match=r"features\.json does not describe records"):
        shards.open_split(root, "train")


@pytest.mark.parametrize("path", ["/etc/passwd", "../data/codec.npz", "a/../../b"])
def test_manifests_name_files_of_their_own_folder_only(write, path):
    root = write()
    edit_manifest(root, lambda fields: fields["files"][0].update(path=path))
    with pytest.raises(ValueError, match="files of .* must lie in its folder, got"):
        verify(root)
    edit_manifest(root, lambda fields: fields.update(name="../../tiny"))
    with pytest.raises(ValueError, match="name of .* must be a Python identifier"):
        shards.check_shards(root)
