# SPDX-License-Identifier: Apache-2.0
"""A whole pipeline, loaded and run by diffusers."""

import json

import numpy as np
import pytest

from rfjax.checksums import digest
from rfjax.data.manifest import EncoderSpec, LatentSpec, Manifest, TextSpec
from rfjax.encoders.images.autoencoder_kl import AutoencoderKLConfig
from rfjax.evaluation.sample import SampleConfig
from rfjax.export import card, data_identity, picture_files, save

pytestmark = [
    # Warnings of torch and diffusers about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
# What the pipeline needs of an absent part: to be told.
NO_ENCODERS = dict.fromkeys(
    f"{part}{number}"
    for part in ("text_encoder", "tokenizer")
    for number in ("", "_2", "_3")
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with an autoencoder of 3 latent channels."""
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("parts")
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), latent_channels=3, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False, use_post_quant_conv=False,
        shift_factor=0.1, scaling_factor=1.5,
    )  # fmt: skip
    autoencoder.save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def config(make_config):
    return make_config(qk_norm=True)


def test_diffusers_runs_the_pipeline(config, make_run, parts, tmp_path, monkeypatch):
    import torch
    from diffusers import StableDiffusion3Pipeline

    run = make_run(config, sample=SampleConfig(num_steps=2))
    report = save.export_run(run, out=tmp_path / "export", pipeline=parts)
    assert "model_index.json" in report.files
    assert "vae/config.json" in report.files
    code = (report.out / "README.md").read_text().split("```python\n")[1]
    code = code.split("```")[0].replace("FOLDER", str(report.out))
    assert all(f"{part}=None" in code for part in NO_ENCODERS)
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        report.out, **NO_ENCODERS, image_encoder=None, feature_extractor=None
    )
    pipeline.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    context = torch.from_numpy(rng.standard_normal((1, 5, 20), np.float32))
    pooled = torch.from_numpy(rng.standard_normal((1, 12), np.float32))
    # The code of the card, given the states that it asks for.
    monkeypatch.chdir(tmp_path)
    states = {"empty_context": context / 2, "empty_pooled": pooled / 2}
    exec(code, {"context": context, "pooled": pooled, **states})
    assert (tmp_path / "picture.png").is_file()
    images = pipeline(
        prompt_embeds=context,
        pooled_prompt_embeds=pooled,
        guidance_scale=1.0,
        num_inference_steps=2,
        height=16,
        width=8,
        output_type="np",
    ).images
    assert images.shape == (1, 16, 8, 3)


def test_text_encoders_are_copied_and_named(config, make_run, parts, tmp_path):
    source = add_encoders(parts, tmp_path, clip=(5, 7), t5=20)
    report = save.export_run(make_run(config), out=tmp_path / "export", pipeline=source)
    index = json.loads((report.out / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline"
    assert index["text_encoder_3"] == ["transformers", "T5EncoderModel"]
    assert index["tokenizer"] == [None, None]
    assert (report.out / "text_encoder_2" / "config.json").is_file()
    assert not (report.out / "unrelated").exists()


def add_encoders(parts, tmp_path, *, clip, t5):
    import shutil

    source = tmp_path / "source"
    shutil.copytree(parts, source)
    (source / "unrelated").mkdir()
    sizes = {"": clip[0], "_2": clip[1]}
    fields = {f"text_encoder{n}": {"projection_dim": s} for n, s in sizes.items()}
    for part, config in (fields | {"text_encoder_3": {"d_model": t5}}).items():
        (source / part).mkdir()
        (source / part / "config.json").write_text(json.dumps(config))
    return source


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"clip": (5, 5), "t5": 20}, "projection_dim of text_encoder . text_encoder_2"),
        ({"clip": (5, 7), "t5": 8}, "d_model .*must be model.context_dim = 20, got 8"),
    ],
)
def test_encoders_of_another_size(config, make_run, parts, tmp_path, sizes, message):
    source = add_encoders(parts, tmp_path, **sizes)
    refused(make_run(config), tmp_path, source, message)


def test_autoencoder_of_another_size(make_config, make_run, parts, tmp_path):
    run = make_run(make_config(latent_channels=4))
    refused(run, tmp_path, parts, "latent_channels .*= 4, got 3")


def test_masked_text_is_refused(config, make_run, parts, tmp_path):
    run = make_run(config, data={"context_mask": True})
    refused(run, tmp_path, parts, "pipeline must not .*mask over padded text")


def test_single_file_is_no_pipeline(config, make_run, parts, tmp_path):
    run = make_run(config)
    refused(run, tmp_path, parts, "format must be diffusers", layout="sd3")


def test_pickles_are_refused(config, make_run, parts, tmp_path):
    source = add_encoders(parts, tmp_path, clip=(5, 7), t5=20)
    (source / "text_encoder" / "model.bin").write_bytes(b"")
    refused(make_run(config), tmp_path, source, "model.bin is a pickle")


def test_folder_without_an_autoencoder(config, make_run, tmp_path):
    run = make_run(config)
    refused(run, tmp_path, tmp_path, "no vae/config.json", error=FileNotFoundError)


def refused(run, tmp_path, source, message, *, error=ValueError, **choices):
    with pytest.raises(error, match=message):
        save.export_run(run, out=tmp_path / "export", pipeline=source, **choices)
    assert not (tmp_path / "export").exists()
    assert not list(tmp_path.glob(".*"))


def on_data(run, *, codec, length=77, kinds=("clip", "clip", "t5"), **latent):
    """Puts the run on an encoded data set, of which there is the manifest alone."""
    folder = run.parent / "data"
    folder.mkdir()
    sizes = {"clip": [(6, 5), (9, 7)], "t5": [(20, 0)] * 2, "minilm": [(20, 12)]}
    encoders = []
    for number, kind in enumerate(kinds):
        context_dim, pooled_dim = sizes[kind].pop(0)
        name = f"{kind}{number}"
        encoders.append(EncoderSpec(name, kind, context_dim, length, pooled_dim, name))
    manifest = Manifest(
        name="photos",
        grade="photos",
        splits={"train": 1, "validation": 1},
        latent=LatentSpec(shape=(8, 8, 3), codec=codec, **latent),
        text=TextSpec(encoders=tuple(encoders)),
        creation={"codec": {"dtype": "float32"}},
    )
    (folder / "rfjax.json").write_text(manifest.to_json())
    fields = json.loads((run / "config.json").read_text())
    fields["data"] = {"kind": "shards", "path": str(folder), "context_mask": False}
    (run / "config.json").write_text(json.dumps(fields))
    return run


SAME = {"codec": "autoencoder_kl", "codec_scale": 1.5, "codec_shift": 0.1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"codec": "patch_pca"},
            "codec of data set photos, patch_pca, got AutoencoderK",
        ),
        (SAME | {"codec": "vq"}, "codec of data set photos, vq, got AutoencoderKL"),
        (SAME | {"codec_scale": 1.6}, "scaling_factor .* photos, 1.6, got 1.5"),
        (SAME | {"codec_shift": 0.0}, "shift_factor .* photos, 0.0, got 0.1"),
        (SAME | {"codec_scale": None}, "scaling_factor .* photos, None, got 1.5"),
        (SAME | {"codec_weights": "0" * 32}, "weights .* must be .* photos, 00000"),
        (
            SAME | {"kinds": ("minilm",)},
            "hold minilm0, a minilm .* got CLIPText.*, CLIP.*, T5Encoder",
        ),
        (
            SAME | {"kinds": ("clip", "clip")},
            "text_encoder_3 of .* must have encoded .*, got clip0, clip1 in",
        ),
        (
            SAME | {"kinds": ("clip", "clip", "t5", "t5")},
            "must hold t53, a t5 .* got no others",
        ),
        (
            SAME | {"length": 78},
            "tokens of text_encoder must be at least those of clip0 .* 78, got 77",
        ),
    ],
)
def test_parts_of_another_data_set(config, make_run, parts, tmp_path, data, message):
    source = add_encoders(parts, tmp_path, clip=(5, 7), t5=20)
    for number in ("", "_2"):
        (source / f"tokenizer{number}").mkdir()
        (source / f"tokenizer{number}" / "tokenizer_config.json").write_text(
            '{"model_max_length": 77}'
        )
    refused(on_data(make_run(config), **data), tmp_path, source, message)


def test_parts_of_the_data_set(config, make_run, parts, tmp_path):
    source = add_encoders(parts, tmp_path, clip=(5, 7), t5=20)
    weights = AutoencoderKLConfig(path=str(parts / "vae"), device="cpu").make().weights
    run = on_data(make_run(config), **SAME, codec_weights=weights)
    report = save.export_run(run, out=tmp_path / "export", pipeline=source)
    assert "vae/config.json" in report.files


def test_weights_of_text_encoders_are_those_of_the_data_set(sd3_parts, tmp_path):
    """By their digests: others of the same size would be mistaken for them."""
    import shutil

    from rfjax.encoders.text.clip import CLIPConfig

    source = tmp_path / "source"
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(sd3_parts / part, source / part)
    config = CLIPConfig(path=str(sd3_parts), subfolder="text_encoder")
    weights = config.make().weights
    spec = EncoderSpec(
        "clip_l", "clip", 24, 77, 24,
        fields={"path": "gone", "subfolder": "text_encoder"}, weights=weights,
    )  # fmt: skip
    manifest = Manifest(
        "photos", "photos", {}, LatentSpec((8, 8, 3), "vq"), TextSpec((spec,))
    )
    path = source / "text_encoder" / "config.json"
    fields = json.loads(path.read_text())
    there = {"text_encoder": (fields, 77)}
    data_identity.check_text_encoders(manifest, there, source=source)
    path.write_text(json.dumps(fields | {"hidden_act": "gelu"}))
    with pytest.raises(ValueError, match=f"of digest {weights[:12]}, .* or export wit"):
        data_identity.check_text_encoders(manifest, there, source=source)
    there = {"text_encoder": (fields | {"hidden_size": 32}, 77)}
    with pytest.raises(ValueError, match="hidden_size of text_encoder .* 24, got 32"):
        data_identity.check_text_encoders(manifest, there, source=source)


def test_an_exported_codec_names_no_folder_of_this_machine(parts, tmp_path):
    path = tmp_path / "codec.npz"
    config = AutoencoderKLConfig(path=str(parts / "vae"), device="cpu")
    picture_files.save_codec(config.make(), path)
    with np.load(path) as arrays:
        assert str(arrays["path"]) == "vae"
        assert not any(str(parts) in str(value) for value in arrays.values())
    config.make().save(tmp_path / "with_folders.npz")  # control
    with np.load(tmp_path / "with_folders.npz") as arrays:
        assert str(parts) in str(arrays["path"])
    assert AutoencoderKLConfig.load(path, [config.path]).weights
    with pytest.raises(FileNotFoundError, match="path of codec autoencoder_kl"):
        AutoencoderKLConfig.load(path)


def test_parts_that_cannot_be_compared(config, make_run, parts, tmp_path):
    run = on_data(make_run(config), **SAME)
    (tmp_path / "data" / "rfjax.json").unlink()
    refused(run, tmp_path, parts, "compared with the data set of the run, which is not")
    assert save.export_run(run, out=tmp_path / "alone").files  # control


def test_the_data_is_that_of_training(config, make_run, parts, tmp_path):
    """Where the config says or where it was in training, and no other data."""
    run = on_data(make_run(config), **SAME)
    record = json.loads((run / "run.json").read_text())
    found = card.read_run(run).manifest
    (tmp_path / "data").rename(tmp_path / "moved")
    record |= {
        "data_path": str(tmp_path / "moved"),
        "data_hash": digest(found.to_json()),
    }
    (run / "run.json").write_text(json.dumps(record))
    assert card.read_run(run).manifest == found
    (run / "run.json").write_text(json.dumps(record | {"data_hash": "0123456789ab"}))
    assert card.read_run(run).manifest is None
    refused(run, tmp_path, parts, "compared with the data set of the run, which is not")
