# SPDX-License-Identifier: Apache-2.0
"""Text encoders with the user's weights, against diffusers' own pipeline."""

import dataclasses
import importlib.util
import json
import shutil
import sys

import numpy as np
import pytest

from rfjax.encoders import text
from rfjax.encoders.text.clip import CLIPConfig
from rfjax.encoders.text.t5 import T5Config

# Warnings of torch, transformers and diffusers about themselves.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
CAPTIONS = ["a fox", "A red cat, asleep", "", "fox " * 60]
T5_LENGTH = 84
ENCODERS = {"clip_l": "", "clip_g": "_2", "t5": "_3"}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    return hub


def config_of(name, folder, **fields):
    """As SD3 is written in a data set's config."""
    part = ENCODERS[name]
    known = {"path": str(folder), "subfolder": f"text_encoder{part}", "name": name}
    if name == "t5":
        return T5Config(**known | {"length": T5_LENGTH} | fields)
    return CLIPConfig(**known | fields)


@pytest.fixture(scope="module")
def pipeline(sd3_parts):
    diffusers = pytest.importorskip("diffusers")
    diffusers.utils.logging.set_verbosity_error()
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(
        sd3_parts, transformer=None, image_encoder=None, feature_extractor=None
    )
    return pipeline


@pytest.fixture(scope="module")
def theirs(pipeline):
    """What the pipeline makes of the captions: context [B, 77 + T, D], pooled."""
    import torch

    with torch.inference_mode():
        context, _, pooled, _ = pipeline.encode_prompt(
            CAPTIONS, None, None, max_sequence_length=T5_LENGTH
        )
    return context.numpy(), pooled.numpy()


@pytest.fixture(scope="module")
def ours(sd3_parts):
    """Name -> (encoder, the captions encoded)."""
    found = {}
    for name in ENCODERS:
        encoder = config_of(name, sd3_parts, too_long="cut").make()
        found[name] = encoder, encoder.encode(CAPTIONS)
    return found


def test_states_are_those_of_the_pipeline(ours, theirs):
    context, pooled = theirs
    clips = [ours[name][1] for name in ("clip_l", "clip_g")]
    beside = np.concatenate([clip.context for clip in clips], axis=-1)
    np.testing.assert_allclose(beside, context[:, :77, :64], atol=1e-5)
    assert not context[:, :77, 64:].any()
    np.testing.assert_allclose(ours["t5"][1].context, context[:, 77:], atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([clip.pooled for clip in clips], axis=-1), pooled, atol=1e-5
    )
    assert ours["t5"][1].pooled.shape == (4, 0)
    for name, (encoder, encoded) in ours.items():
        assert isinstance(encoder, text.TextEncoder)
        assert encoder.mask is False
        assert encoder.joined == ("tokens" if name == "t5" else "channels")
        assert encoded.context.dtype == encoded.pooled.dtype == np.float32
        assert encoded.context.shape[2] == encoder.context_dim
        assert encoded.pooled.shape[1] == encoder.pooled_dim


def test_captions_are_cut_or_refused(ours, sd3_parts):
    """The cut caption is the pipeline's too; here is what is told of it."""
    clip, t5 = ours["clip_l"][1], ours["t5"][1]
    np.testing.assert_array_equal(clip.num_tokens, [4, 13, 2, 62])
    np.testing.assert_array_equal(t5.num_tokens, [3, 12, 1, 61])
    encoder, long = ours["clip_l"][0], "fox " * 80
    np.testing.assert_array_equal(
        encoder.encode([long]).context, encoder.encode(["fox " * 75]).context
    )
    cut = text.CutCaptions("clip_l", 77)
    for captions in (["a fox", long], ["cat " * 90], [""]):
        cut.add(captions, encoder.encode(captions))
    assert str(cut) == (
        "2 of 4 captions were cut to the 77 tokens that the text encoder clip_l takes, "
        f"the longest of 92: {'cat ' * 15 + '...'!r}."
    )
    none = text.CutCaptions("clip_l", 77)
    none.add(CAPTIONS, clip)
    assert str(none) == ""
    refusing = config_of("clip_l", sd3_parts).make()
    message = (
        "has 82 tokens, the text encoder clip_l takes at most 77, .* too_long = cut"
    )
    with pytest.raises(ValueError, match=message):
        refusing.encode(["a fox", long])
    with pytest.raises(ValueError, match="at least one caption"):
        refusing.encode([])


def test_words_that_become_special_tokens(ours):
    captions = ["a fox", "a \U0001f98a", "a <|endoftext|> fox </s>"]
    clip = ours["clip_l"][0].encode(captions).unknown_words
    assert clip == [[], [], ["<|endoftext|>"]]  # CLIP knows every byte
    t5 = ours["t5"][0].encode(captions).unknown_words
    assert t5[:2] == [[], ["\U0001f98a"]]
    assert t5[2][-1] == "</s>"


@pytest.mark.parametrize("name", ENCODERS)
def test_lengths_and_dtypes(ours, sd3_parts, name):
    """A shorter length keeps CLIP's states: it is causal; T5 sees fewer pads."""
    short = config_of(name, sd3_parts, length=30).make().encode(CAPTIONS[:3])
    assert short.context.shape[1] == 30
    same = np.abs(short.context - ours[name][1].context[:3, :30]).max() < 1e-5
    assert same == (name != "t5")
    rough = config_of(name, sd3_parts, dtype="bfloat16", batch_size=2, too_long="cut")
    made = rough.make()
    assert made.weights != ours[name][0].weights
    difference = np.abs(made.encode(CAPTIONS).context - ours[name][1].context)
    assert 1e-3 < difference.max() < 0.5
    assert difference.mean() < 0.02


def test_jax_computes_the_same(ours, sd3_parts):
    pytest.importorskip("torchax", reason="torchax, an extra package, is not installed")
    for name, (_, expected) in ours.items():
        encoder = config_of(name, sd3_parts, device="jax", too_long="cut").make()
        found = encoder.encode(CAPTIONS[:3])
        np.testing.assert_allclose(found.context, expected.context[:3], atol=1e-5)
        np.testing.assert_allclose(found.pooled, expected.pooled[:3], atol=1e-5)
        assert encoder.weights == ours[name][0].weights


def test_jax_needs_torchax(sd3_parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchax", None)
    with pytest.raises(
        ImportError, match=r"torchax must .* device 'jax' of t5, .*rfjax\[torchax\]"
    ):
        config_of("t5", sd3_parts, device="jax").make()


def test_other_choices_would_differ(ours, sd3_parts):
    """Controls: the final layer, its norm, a padding mask, the other encoder."""
    import torch
    import transformers

    encoder = ours["clip_l"][0]
    folder = sd3_parts / "text_encoder"
    model = transformers.CLIPTextModelWithProjection.from_pretrained(folder).eval()
    tokens = encoder._tokenizer(
        CAPTIONS[:3], padding="max_length", max_length=77, return_tensors="pt"
    )
    with torch.inference_mode():
        found = model(**tokens, output_hidden_states=True)
        normed = model.text_model.final_layer_norm(found.hidden_states[-2])
    ids = torch.as_tensor(tokens.input_ids)
    for other in (found.hidden_states[-1], found.last_hidden_state, normed):
        assert (
            other - torch.from_numpy(ours["clip_l"][1].context[:3])
        ).abs().max() > 0.1
    t5 = transformers.T5EncoderModel.from_pretrained(
        sd3_parts / "text_encoder_3"
    ).eval()
    tokens = ours["t5"][0]._tokenizer(
        CAPTIONS[:3], padding="max_length", max_length=T5_LENGTH, return_tensors="pt"
    )
    with torch.inference_mode():
        masked = t5(**tokens).last_hidden_state.numpy()
    difference = np.abs(masked - ours["t5"][1].context[:3])
    assert difference[:, 0].max() > 0.1  # in the very first token
    assert ids.shape == (3, 77)


def copied(sd3_parts, folder):
    """A copy of the text encoders that a test may damage."""
    for part in ("text_encoder", "tokenizer", "text_encoder_3", "tokenizer_3"):
        shutil.copytree(sd3_parts / part, folder / part)
    return folder


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_projection(folder):
    from safetensors.numpy import load_file, save_file

    path = folder / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    del weights["text_projection.weight"]
    save_file(weights, path, metadata={"format": "pt"})


def pickle_weights(folder):
    path = folder / "text_encoder" / "model.safetensors"
    path.rename(path.with_name("pytorch_model.bin"))


WEIGHTS, CONFIG = "text_encoder/model.safetensors", "text_encoder/config.json"


@pytest.mark.parametrize(
    ("damage", "fields", "message"),
    [
        (None, {"path": "/no/folder"}, "path of clip_l must be .* which is neither"),
        (None, {"path": "no/folder"}, "'no/folder': there is no such folder, and "),
        (None, {"subfolder": "text"}, "in the subfolder text of .* text_encoder, "),
        (None, {"subfolder": ""}, "folder with config.json, got "),
        (None, {"subfolder": "text_encoder_3"}, "clip for clip_l, got 't5'; correct"),
        (None, {"tokenizer": "text_encoder"}, "tokenizer.json or vocab.json and mer"),
        (None, {"tokenizer": "tokenizer_3"}, "must be a CLIPTokenizer, got a T5Tok"),
        (None, {"length": 78}, "length must be at most 77, the positions .* got 78"),
        (None, {"device": "cuda"}, "device of clip_l must be there, got 'cuda'"),
        (lambda f: cut_in_half(f / WEIGHTS), {}, "must be whole .* not fully covered"),
        (lambda f: (f / WEIGHTS).unlink(), {}, "must be safetensors, got config.json;"),
        (pickle_weights, {}, "got config.json, pytorch_model.bin; take those"),
        (drop_projection, {}, "WithProjection, got none for text_projection.weight;"),
        (
            lambda f: edit(f / CONFIG, hidden_size=32),
            {},
            "must be .77, 32. as .* .77, 24.;",
        ),
        (lambda f: edit(f / CONFIG, hidden_act="x"), {}, "must be whole and of this"),
        (lambda f: edit(f / CONFIG, vocab_size=99), {}, "at most the 99 tokens .* 519"),
        (lambda f: edit(f / CONFIG, eos_token_id=7), {}, "the token 518 with .* got 7"),
        (lambda f: cut_in_half(f / CONFIG), {}, "config.json must be JSON"),
        (lambda f: cut_in_half(f / "tokenizer/tokenizer.json"), {}, "cannot be read"),
    ],
)
def test_what_cannot_be_loaded(sd3_parts, tmp_path, damage, fields, message):
    if (
        fields.get("device") == "cuda"
        and pytest.importorskip("torch").cuda.is_available()
    ):
        pytest.skip("there is a GPU")
    folder = copied(sd3_parts, tmp_path / "parts")
    if damage:
        damage(folder)
    config = dataclasses.replace(config_of("clip_l", folder), **fields)
    with pytest.raises(ValueError, match=message) as caught:
        config.make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 2}, "length must be between 3 and 1024, got 2"),
        ({"too_long": "warn"}, "too_long must be one of refuse, cut, got 'warn'"),
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda, jax, got 'gpu'"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, got"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"path": " "}, "path must not be empty"),
        ({"path": "https://hub/x"}, "path must be a path on this machine"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(ValueError, match=f"text_encoders.{message}"):
        config_of("clip_l", "folder", **fields)


def test_a_t5_whose_pads_are_others(sd3_parts, tmp_path):
    folder = copied(sd3_parts, tmp_path / "parts")
    edit(folder / "text_encoder_3" / "config.json", pad_token_id=3)
    with pytest.raises(ValueError, match="pad_token_id .* tokenizer, 0, got 3; give"):
        config_of("t5", folder).make()


def test_a_t5_of_old_needs_another_package(sd3_parts, tmp_path):
    if importlib.util.find_spec("sentencepiece"):
        pytest.skip("sentencepiece is installed")
    folder = copied(sd3_parts, tmp_path / "parts")
    tokenizer = folder / "tokenizer_3"
    (tokenizer / "tokenizer.json").rename(tokenizer / "spiece.model")
    with pytest.raises(ImportError, match="of t5 .*pip install sentencepiece"):
        config_of("t5", folder).make()


def test_the_encoder_of_a_data_set_is_found_again(ours, sd3_parts, tmp_path):
    """By its digest: in other folders and files, but never other weights."""
    digest = ours["clip_l"][0].weights
    moved = copied(sd3_parts, tmp_path / "moved")
    tokenizer = moved / "tokenizer"
    model = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
    (tokenizer / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tokenizer / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (tokenizer / "tokenizer.json").unlink()  # as tokenizers of old are stored
    fields = {"path": str(tmp_path / "gone"), "subfolder": "text_encoder"}
    options = {"length": 77, "name": "clip_l", "fields": fields, "weights": digest}
    with pytest.raises(FileNotFoundError, match="path of clip_l .* --encoders=DIR"):
        text.make_text_encoder("clip", **options)
    folders = [str(tmp_path), str(moved)]  # of which the first has none
    found = text.make_text_encoder("clip", folders=folders, **options)
    np.testing.assert_array_equal(
        found.encode(CAPTIONS[:3]).context,
        ours["clip_l"][0].encode(CAPTIONS[:3]).context,
    )
    for part, change in (
        ("text_encoder/config.json", {"num_attention_heads": 2}),
        ("tokenizer/tokenizer_config.json", {"pad_token": "!"}),
    ):
        original = (moved / part).read_text()
        edit(moved / part, **change)
        with pytest.raises(ValueError, match=f"of digest {digest[:12]}, got .* / path"):
            text.make_text_encoder("clip", folders=[str(moved)], **options)
        (moved / part).write_text(original)
    options["fields"] = fields | {"device": "cuda"}  # of another machine
    drop = {"weights": "", "folders": [str(moved)]}
    assert text.make_text_encoder("clip", **options | drop).weights == digest


def test_a_missing_package_is_named(sd3_parts, monkeypatch):
    for package, device, extra in (
        ("torch", "cpu", "encode"),
        ("torchax", "jax", "to"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            words = rf"^{package} must be installed for .*clip_l, .*rfjax\[{extra}"
            with pytest.raises(ImportError, match=words):
                config_of("clip_l", sd3_parts, device=device).make()


def test_a_digest_says_which_parameter_has_which_values(ours, sd3_parts, tmp_path):
    """Two that are exchanged are found; the order of a file does not matter."""
    from safetensors.torch import load_file, save_file

    moved = copied(sd3_parts, tmp_path / "parts")
    file = moved / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    for is_exchanged in (False, True):
        if is_exchanged:
            endings = ("0.self_attn.q_proj.weight", "0.self_attn.k_proj.weight")
            one, other = (name for name in weights if name.endswith(endings))
            weights[one], weights[other] = weights[other], weights[one]
        save_file(dict(reversed(weights.items())), file, metadata={"format": "pt"})
        digest = config_of("clip_l", moved).make().weights
        assert (digest != ours["clip_l"][0].weights) == is_exchanged


def test_a_model_of_the_hub(sd3_parts, tmp_path, monkeypatch, ours, no_hub):
    """Downloaded before, and found where the hub cannot be reached."""
    snapshot = tmp_path / "models--small--sd3" / "snapshots" / ("0" * 40)
    copied(sd3_parts, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(no_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    encoder = config_of("clip_l", "small/sd3").make()
    assert encoder.weights == ours["clip_l"][0].weights
    with pytest.raises(ValueError, match="'small/sd4': there is no such folder, and "):
        config_of("clip_l", "small/sd4").make()
