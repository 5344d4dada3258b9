# SPDX-License-Identifier: Apache-2.0
"""Joining the features of several text encoders, and dropping some of them."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from rfjax.data import ShardsConfig, conditioning
from rfjax.data.manifest import EncoderSpec, LatentSpec, Manifest, TextSpec

# Stable Diffusion 3 in small.
CLIP_L = EncoderSpec("clip_l", "clip", 6, 7, 6, prefix="l_", joined="channels")
CLIP_G = EncoderSpec("clip_g", "clip", 10, 7, 10, prefix="g_", joined="channels")
T5 = EncoderSpec("t5", "t5", 32, 9, 0, prefix="t5_")
SD3 = TextSpec((CLIP_L, CLIP_G, T5))
# (tokens, channels) of each.
PARTS = (
    (slice(7), slice(6)),
    (slice(7), slice(6, 16)),
    (slice(7, 16), slice(32)),
)


def manifest_of(text):
    latent = LatentSpec(shape=(4, 4, 6), codec="none")
    return Manifest("test", "test", {}, latent=latent, text=text)


def draw_features(rng, text=SD3, *, length=4, rows=None, caption=0):
    """Random features of one caption; nowhere zero."""
    features = {}
    for encoder in text.encoders:
        name = manifest_of(text).feature(caption, encoder, "context")
        shape = (encoder.length if rows is None else rows, encoder.context_dim)
        if encoder.context_dim:
            features[name] = rng.uniform(1, 2, shape).astype(ml_dtypes.bfloat16)
            features[f"{name}_length"] = np.int32(length)
        if encoder.pooled_dim:
            features[manifest_of(text).feature(caption, encoder, "pooled")] = (
                rng.uniform(1, 2, encoder.pooled_dim).astype(ml_dtypes.bfloat16)
            )
    return features


def write(text, features, **options):
    """One caption joined, in the place of another that was whole."""
    joiner = conditioning.CaptionJoiner(manifest_of(text))
    arrays = joiner.allocate(3)
    for name in ("context", "pooled"):
        arrays[name][[0, 2]] = np.nan
    joiner.write(draw_features(np.random.default_rng(9), text), arrays, 1)
    joiner.write(features, arrays, 1, **options)
    for name in ("context", "pooled"):
        assert np.isnan(arrays[name][[0, 2]].astype(np.float32)).all(), "other rows"
    return {name: array[1] for name, array in arrays.items()}


# -- Joining -----------------------------------------------------------------------


def test_encoders_are_joined_as_diffusers_joins_them():
    """By the code of its pipeline, given the states of the three encoders."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    rng = np.random.default_rng(0)
    captions = [draw_features(rng) for _ in range(3)]

    def states(name):
        stacked = np.stack([features[name] for features in captions])
        return torch.from_numpy(stacked.astype(np.float32))

    class Pipeline(diffusers.StableDiffusion3Pipeline):
        text_encoder = text_encoder_2 = None

        def __init__(self):
            """Without any part: only the joining is wanted."""

        def _get_clip_prompt_embeds(self, *, clip_model_index, **_):
            prefix = "lg"[clip_model_index]
            return states(f"{prefix}_context"), states(f"{prefix}_pooled")

        def _get_t5_prompt_embeds(self, **_):
            return states("t5_context")

    context, _, pooled, _ = Pipeline().encode_prompt(
        ["a"] * 3, None, None, device="cpu", do_classifier_free_guidance=False
    )
    joined = conditioning.join_captions(captions, manifest_of(SD3))
    assert joined["context"].shape == (3, *SD3.context_shape) == (3, 16, 32)
    assert joined["pooled"].shape == (3, manifest_of(SD3).pooled_dim) == (3, 16)
    np.testing.assert_array_equal(joined["context"].astype(np.float32), context)
    np.testing.assert_array_equal(joined["pooled"].astype(np.float32), pooled)
    # Control: in another order it is another context.
    swapped = dataclasses.replace(SD3, encoders=(CLIP_G, CLIP_L, T5))
    other = conditioning.join_captions(captions, manifest_of(swapped))
    assert not np.array_equal(other["context"], joined["context"])
    assert not np.array_equal(other["pooled"], joined["pooled"])


def test_one_encoder_is_as_it_was():
    features = draw_features(np.random.default_rng(0), TextSpec((T5,)))
    row = write(TextSpec((T5,)), features)
    np.testing.assert_array_equal(row["context"], features["t5_context"])
    assert row["context_mask"].tolist() == [True] * 4 + [False] * 5
    assert row["pooled"].shape == (0,)


def test_contexts_are_padded_to_a_given_width():
    wide = dataclasses.replace(SD3, context_dim=40)
    features = draw_features(np.random.default_rng(0))
    row = write(wide, features)
    assert row["context"].shape == wide.context_shape == (16, 40)
    narrow = write(SD3, features)
    np.testing.assert_array_equal(row["context"][:, :32], narrow["context"])
    assert not row["context"][:, 32:].any()
    with pytest.raises(ValueError, match=r"context_dim must be at least 32, .* got 31"):
        dataclasses.replace(SD3, context_dim=31)


def test_an_encoder_may_be_pooled_only():
    """As CLIP-L of FLUX.1."""
    flux = TextSpec((dataclasses.replace(CLIP_L, context_dim=0, length=1), T5))
    features = draw_features(np.random.default_rng(0), flux)
    row = write(flux, features)
    np.testing.assert_array_equal(row["context"], features["t5_context"])
    np.testing.assert_array_equal(row["pooled"], features["l_pooled"])


def test_the_layout_unpadded_has_zeros_for_pads():
    text = dataclasses.replace(SD3, layout="unpadded")
    rng = np.random.default_rng(0)
    row = write(text, draw_features(rng, rows=4))
    assert row["context_mask"].tolist() == [*[True] * 4, *[False] * 3] + [
        *[True] * 4,
        *[False] * 5,
    ]
    filled = row["context"].any(axis=1)
    np.testing.assert_array_equal(filled, row["context_mask"])
    # The empty caption is stored with its pads, which are left out as others' are.
    assert not write(text, draw_features(rng))["context"][4:7].any()
    assert write(SD3, draw_features(rng))["context"].any(axis=1).all(), "control"


def test_more_tokens_than_the_encoder_gives():
    features = draw_features(np.random.default_rng(0), rows=10)
    with pytest.raises(ValueError, match="l_context must have at most 7 tokens, got 1"):
        write(SD3, features)


def test_encoders_side_by_side_have_one_length():
    with pytest.raises(ValueError, match="same length, got clip_l 7, clip_g 8; give"):
        TextSpec((CLIP_L, dataclasses.replace(CLIP_G, length=8), T5))


# -- Dropping encoders -------------------------------------------------------------


@pytest.mark.parametrize("dropped", list(np.ndindex(2, 2, 2)))
def test_a_dropped_encoder_leaves_zeros(dropped):
    features = draw_features(np.random.default_rng(0))
    row, whole = write(SD3, features, dropped=dropped), write(SD3, features)
    keep = np.ones_like(whole["context"])
    for is_dropped, part in zip(dropped, PARTS, strict=True):
        keep[part] *= 1 - is_dropped
    np.testing.assert_array_equal(row["context"], whole["context"] * keep)
    kept = 1 - np.repeat(dropped[:2], [6, 10])
    np.testing.assert_array_equal(row["pooled"], whole["pooled"] * kept)
    # Nothing tells how long the caption was that a dropped encoder read.
    clip, t5 = not (dropped[0] and dropped[1]), not dropped[2]
    expected = [clip] * 4 + [False] * 3 + [t5] * 4 + [False] * 5
    assert row["context_mask"].tolist() == expected


def choose(positions, *, has_caption=(True,), weights=(1.0,), seed=0, **rates):
    choices = conditioning.CaptionChoices(
        seed=seed,
        weights=weights,
        num_encoders=3,
        **{"caption_dropout": 0.1, "encoder_dropout": 0.464} | rates,
    )
    return [choices.choose(choices.draw(p), has_caption) for p in positions]


def test_encoders_are_dropped_independently():
    """All three at once in a tenth of the examples, as SD3 has it."""
    count = 20_000
    chosen = choose(range(count))
    dropped = np.array([choice.dropped for choice in chosen])
    empty = np.array([choice.is_empty for choice in chosen])

    def near(rate):
        return pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / count))

    for index in range(3):
        assert dropped[:, index].mean() == near(0.464)
        others = np.delete(dropped, index, axis=1).all(axis=1)
        assert others.mean() == near(0.464**2)
        assert (dropped[:, index] & empty).mean() == near(0.0464)
    assert dropped.all(axis=1).mean() == near(0.464**3)
    assert 0.464**3 == pytest.approx(0.1, abs=1e-3)
    assert (~dropped).all(axis=1).mean() == near(0.536**3)
    assert empty.mean() == near(0.1)
    # Controls: never, always; and another seed draws others.
    assert not np.any([c.dropped for c in choose(range(100), encoder_dropout=0.0)])
    assert np.all([c.dropped for c in choose(range(100), encoder_dropout=1.0)])
    other = np.array([choice.dropped for choice in choose(range(100), seed=1)])
    assert not np.array_equal(other, dropped[:100])


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_empty_captions_stand_where_they_always_stood(rate):
    """Runs of data with one encoder drew one number at each position."""
    expected = [
        np.random.default_rng((7, 0xD209, position)).random(1)[0] < rate
        for position in range(200)
    ]
    chosen = choose(range(200), seed=7, caption_dropout=rate)
    assert [choice.is_empty for choice in chosen] == expected
    assert any(expected)
    shifted = choose(range(1, 201), seed=7, caption_dropout=rate)
    assert [choice.is_empty for choice in shifted] != expected, "control"


# -- Several captions --------------------------------------------------------------


def test_captions_are_drawn_by_their_weights():
    def shares(has_caption, weights=(1.0, 2.0, 1.0)):
        chosen = choose(range(4000), has_caption=has_caption, weights=weights)
        counts = np.bincount([choice.caption for choice in chosen], minlength=3)
        return counts / 4000

    # Four standard deviations at most.
    np.testing.assert_allclose(shares([True] * 3), [0.25, 0.5, 0.25], atol=0.032)
    # Those that a record lacks go to the others; the first, if it has none.
    np.testing.assert_allclose(
        shares([True, True, False]), [1 / 3, 2 / 3, 0], atol=0.03
    )
    np.testing.assert_array_equal(shares([False, False, True]), [0, 0, 1])
    np.testing.assert_array_equal(shares([False] * 3), [1, 0, 0])
    np.testing.assert_array_equal(shares([True] * 3, (0.0, 1.0, 0.0)), [0, 1, 0])


def test_a_further_caption_has_features_of_its_own():
    text = dataclasses.replace(SD3, captions=("original", "synthetic"))
    rng = np.random.default_rng(0)
    record = draw_features(rng, text) | draw_features(
        rng, text, caption=1, rows=3, length=3
    )
    assert "synthetic_l_context" in record
    row = write(text, record, caption=1)
    np.testing.assert_array_equal(row["context"][7:10], record["synthetic_t5_context"])
    assert row["context_mask"].sum() == 6
    assert write(text, record)["context_mask"].sum() == 8, "control"
    joiner = conditioning.CaptionJoiner(manifest_of(text))
    record |= {"caption": b"a cat", "synthetic": b""}
    assert joiner.has_captions(record) == [True, False]


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 0.0), (1.0, 1.0, 1.0)])
def test_wrong_weights(weights):
    text = dataclasses.replace(SD3, captions=("original", "synthetic"))
    with pytest.raises(ValueError, match="each of original, synthetic, some .* got"):
        conditioning.caption_weights(text, weights)


def test_weights_are_equal_by_default():
    text = dataclasses.replace(SD3, captions=("original", "synthetic"))
    assert conditioning.caption_weights(text, ()) == (1.0, 1.0)
    assert conditioning.caption_weights(text, (1, 3)) == (1.0, 3.0)
    assert conditioning.caption_weights(SD3, ()) == (1.0,)


# -- In a stream -------------------------------------------------------------------


SHARED = ("latents", "caption", "annotation")


@pytest.fixture(scope="module")
def sd3_root(tmp_path_factory, tiny):
    rng = np.random.default_rng(0)
    records = {
        split: [
            {name: tiny.record(split, index)[name] for name in SHARED}
            | draw_features(rng)
            for index in range(count)
        ]
        for split, count in tiny.splits.items()
    }
    root = tmp_path_factory.mktemp("sd3") / "data"
    empty = {name: value + 2 for name, value in draw_features(rng).items()}
    empty |= {f"{e.prefix}context_length": np.int32(2) for e in SD3.encoders}
    tiny.write(
        root,
        manifest=tiny.manifest(text=SD3),
        examples=records,
        empty_caption=empty,
    )
    return root


def read(root, *, index=0, count=1, steps=4, **options):
    config = ShardsConfig(str(root), read_threads=2, **options)
    stream = config.train_stream(
        global_batch_size=12, seed=3, process_index=index, process_count=count
    )
    batches = [next(stream) for _ in range(steps)]
    stream.close()
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    return jax.tree.map(lambda leaf: leaf[np.argsort(joined.sample_index)], joined)


def test_a_stream_drops_encoders_and_captions(sd3_root):
    options = {"encoder_dropout": 0.464, "caption_dropout": 0.5, "context_mask": True}
    batch = read(sd3_root, **options)
    choices = choose(range(48), seed=3, caption_dropout=0.5)
    plain = read(sd3_root, caption_dropout=0.0)
    always = read(sd3_root, caption_dropout=1.0)
    for row, choice in enumerate(choices):
        source = always if choice.is_empty else plain
        for dropped, part in zip(choice.dropped, PARTS, strict=True):
            expected = source.conditioning.context[row][part]
            np.testing.assert_array_equal(
                batch.conditioning.context[row][part],
                0 * expected if dropped else expected,
            )
    both = (
        read(sd3_root, count=2, **options),
        read(sd3_root, index=1, count=2, **options),
    )
    halves = jax.tree.map(lambda *leaves: np.stack(leaves, 1), *both)
    jax.tree.map(
        lambda part, whole: np.testing.assert_array_equal(
            part.reshape(whole.shape), whole
        ),
        halves,
        batch,
    )
    other = read(sd3_root, steps=1, **options | {"encoder_dropout": 0.4})
    first = jax.tree.map(lambda leaf: leaf[:12], batch)
    assert not np.array_equal(other.conditioning.pooled, first.conditioning.pooled)
