# SPDX-License-Identifier: Apache-2.0
"""Filters: each rule on records, duplicates against independent searches, the page."""

import base64
import dataclasses
import html.parser
import io
import multiprocessing.pool
import re
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from rfjax import schema
from rfjax.data.filters import FilterConfig, pictures, report_page, select, with_notes
from rfjax.data.filters.alignment import difference
from rfjax.data.filters.descriptors import LENGTH, describe, normalise, thumbnail
from rfjax.data.filters.duplicates import find_repeated
from rfjax.data.filters.words import words_of
from rfjax.data.sources.base import Entry
from rfjax.data.sources.openmoji import make_canvas, paste, render_emoji
from rfjax.data.sources.pictures import BrokenPicture, decode_picture
from rfjax.errors import MissingFileError, UserError

CLIPART = Path("/usr/share/openclipart/svg")


@dataclasses.dataclass
class Records:
    """A source in memory; bytes are files, which may be broken."""

    entries: list[Entry]
    images: list[np.ndarray | bytes] | None = None
    licence: str = "public domain"
    caption_kinds: tuple[str, ...] = ("original",)

    def __len__(self):
        return len(self.entries)

    def entry(self, index):
        return self.entries[index]

    def picture(self, index):
        if self.images is None:
            raise AssertionError("no rule asks for a picture")
        image = self.images[index]
        if isinstance(image, bytes):
            return decode_picture(image, name=self.entries[index].key)
        return image


def entry(caption="a red car", *, key="", **fields):
    return Entry(key or caption, (caption,), **fields)


def named(images):
    """A source of pictures by name."""
    entries = [entry(f"picture of {name}", key=name) for name in images]
    return Records(entries, list(images.values()))


def filters(**fields):
    return schema.build(FilterConfig, fields, prefix="filters.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red-hot CAR!", "a red hot car"),
        ("snake_case, AK-47", "snake case ak 47"),
        ("naïve Straße ﬁle", "naïve strasse file"),
        ("一把枪 x", "一 把 枪 x"),
        ("हिन्दी लिपि", "हिन्दी लिपि"),
        ("!? - _", ""),
    ],
)
def test_words(text, words):
    assert words_of(text) == words.split()


# Rules, a record that goes, its reason and detail, and a record that just stays.
RULES = [
    (
        {"remove_empty_captions": True},
        entry(" \n", key="blank"), ("no caption", ""), entry("a"),
    ),
    (
        {"min_caption_words": 3},
        entry("red car"), ("caption too short", "2 words, fewer than 3"), entry(),
    ),
    (
        {"max_caption_words": 3},
        entry("a very red car"), ("caption too long", "4 words, more than 3"), entry(),
    ),
    (
        {"min_caption_characters": 9},
        entry("red cars"), ("caption too short", "8 characters, fewer than 9"), entry(),
    ),
    (
        {"max_caption_characters": 9},
        entry("a red cars"), ("caption too long", "10 characters, more than 9"),
        entry(),
    ),
    (
        {"licences": ["cc0*", "Public Domain"]},
        entry(licence="CC-BY 4.0"), ("licence not allowed", "CC-BY 4.0"),
        entry(licence="CC0 1.0"),
    ),
    (
        {"licences": ["cc0*"]},
        entry(), ("licence not allowed", "none"), entry(licence="cc0"),
    ),
    (
        {"scores": {"aesthetic": [5, None]}},
        entry(columns={"aesthetic": 4.99}), ("aesthetic too low", "4.99, less than 5"),
        entry(columns={"aesthetic": 5}),
    ),
    (
        {"scores": {"unsafe": [None, 0.1]}},
        entry(columns={"unsafe": "0.2"}), ("unsafe too high", "0.2, more than 0.1"),
        entry(columns={"unsafe": "0.1"}),
    ),
    (
        {"scores": {"unsafe": [None, 0.1]}},
        entry(columns={"unsafe": float("nan")}), ("unsafe missing", "nan"),
        entry(columns={"unsafe": np.float32(0)}),
    ),
    (
        {"deny": ["Hot Dog"]},
        entry("A hot-dog!"), ("denied word", "hot dog"), entry("a hot doge, not hot"),
    ),
    (
        {"deny": ["gun"], "deny_columns": ["keywords"]},
        entry(columns={"keywords": ("toy", "water gun")}), ("denied word", "gun"),
        entry(columns={"keywords": ["gunwale"]}),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "goes", "reason", "stays"), RULES)
def test_a_rule_about_metadata(rules, goes, reason, stays):
    source = Records([stays, goes, stays])
    selection = select(source, filters(**rules))
    (removed,) = selection.removed
    assert (removed.index, removed.key) == (1, goes.key)
    assert (removed.reason, removed.detail) == reason
    assert selection.kept.tolist() == [0, 2]
    assert selection.sizes is None
    assert select(source, FilterConfig()).kept.tolist() == [0, 1, 2]


def test_every_caption_is_looked_at_and_blank_ones_are_none():
    source = Records(
        [
            Entry("both", ("a red car", "a red car on a road")),
            Entry("first", ("a red car", "")),
            Entry("second", ("", "a red car on a road with a gun")),
            Entry("short", ("car", "a red car on a road")),
        ],
        caption_kinds=("original", "synthetic"),
    )
    rules = filters(remove_empty_captions=True, min_caption_words=2, deny=["gun"])
    assert [(r.key, r.reason) for r in select(source, rules).removed] == [
        ("second", "denied word"),
        ("short", "caption too short"),
    ]


def test_denied_words_of_a_file(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("# a comment\n\ngun  # another\nhot dog\n", encoding="utf-8")
    source = Records([entry("a gun"), entry("hot dog"), entry("another comment")])
    assert select(source, filters(deny_file=str(words))).kept.tolist() == [2]
    rules = filters(deny_file=str(words), deny=["another"])
    with pytest.raises(UserError, match="all 3 removed .3 denied word.; loosen them"):
        select(source, rules)


def test_pixels_decide_size_shape_and_whether_a_picture_is_broken():
    images = {
        "good": np.zeros((20, 40, 3), np.uint8),
        "small": np.zeros((19, 40, 3), np.uint8),
        "long": np.zeros((20, 41, 3), np.uint8),
        "broken": b"\x89PNG\r\n\x1a\n and no more",
    }
    source = named(images)
    selection = select(source, filters(min_side=20, max_aspect=2))
    assert selection.counts == {
        "too small": 1, "too long and thin": 1, "broken picture": 1
    }  # fmt: skip
    assert [each.key for each in selection.removed] == ["small", "long", "broken"]
    assert "40 x 19" in selection.removed[0].detail
    assert "2.05 : 1" in selection.removed[1].detail
    with pytest.raises(BrokenPicture, match=re.escape(selection.removed[2].detail)):
        source.picture(3)
    assert selection.kept.tolist() == [0]
    assert selection.sizes.tolist() == [[20, 40]]
    read = select(source, FilterConfig(), read_pictures=True)
    assert read.sizes.tolist() == [[20, 40], [19, 40], [20, 41]]
    assert read.counts == {"broken picture": 1}


def test_sizes_are_asked_for_where_no_rule_needs_pixels():
    @dataclasses.dataclass
    class Sized(Records):
        def size(self, index):
            return ((20, 40), (19, 40))[index]

    source = Sized([entry(key="good"), entry(key="small")])  # without pictures
    selection = select(source, filters(min_side=20, max_aspect=2))
    assert (selection.kept.tolist(), selection.sizes.tolist()) == ([0], [[20, 40]])
    with pytest.raises(AssertionError, match="no rule asks for a picture"):
        select(source, filters(exact_duplicates=True))


def test_filters_are_not_blamed_where_everything_is_broken():
    source = Records([Entry("row 1", ("",), broken="no JSON")])
    selection = select(source, filters(remove_empty_captions=True))
    assert selection.counts == {pictures.BROKEN: 1}
    assert not len(selection.kept)


def test_a_record_that_cannot_be_read_is_broken_whatever_the_rules():
    records = [entry(), Entry("row 1", ("",), broken="no JSON"), Entry("row 2", ("",))]
    for rules, gone in ({}, {1}), ({"remove_empty_captions": True}, {1, 2}):
        selection = select(Records(records), filters(**rules))
        assert {each.index for each in selection.removed} == gone
        first = selection.removed[0]
        assert (first.key, first.reason, first.detail) == (
            "row 1",
            pictures.BROKEN,
            "no JSON",
        )


def test_each_record_has_its_first_reason_and_all_add_up():
    records = [entry("gun", columns={"score": 0}), entry("car", columns={"score": 0})]
    records += [entry("a", columns={"score": 1})] * 3
    images = [np.full((8, 8, 3), level, np.uint8) for level in (1, 2, 3, 3, 4)]
    rules = filters(deny=["gun"], scores={"score": [1, None]}, exact_duplicates=True)
    selection = select(Records(records, images), rules)
    assert selection.counts == {"score too low": 2, "exact duplicate": 1}
    assert len(selection.kept) + sum(selection.counts.values()) == len(records)
    assert selection.removed[-1].index == 3
    assert selection.removed[-1].duplicate_of == 2


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"licences": ["cc0"]}, "filters.licences must be for a source with a licence"),
        ({"scores": {"beauty": [1, None]}}, "scores.beauty must name.*score, words"),
        ({"deny": ["x"], "deny_columns": ["tags"]}, "deny_columns must .*'tags'"),
        (
            {"near_duplicates": True, "embedding_column": "sscd"},
            "embedding_column must name a column of the source, got 'sscd'; it has",
        ),
    ],
)
def test_what_no_record_has_is_refused_by_name(rules, message):
    records = [entry(columns={"score": 1}), entry(columns={"words": ""})]
    with pytest.raises(UserError, match=message):
        select(Records(records), filters(**rules))
    assert len(select(Records([]), filters(**rules)).kept) == 0


def test_latents_are_not_filtered_by_pixels():
    class Latents:
        """As MLPerf's: entries, and features instead of pictures."""

        caption_kinds = ("original",)

        def __len__(self):
            return 2

        def entry(self, index):
            return entry(("a red car", "car")[index])

    rules = filters(min_side=64, near_duplicates=True)
    with pytest.raises(
        UserError, match="got filters.min_side, filters.near_duplicates"
    ):
        select(Latents(), rules)
    rules = filters(min_caption_words=2)
    selection = select(Latents(), rules)
    assert selection.kept.tolist() == [0]
    page = report_page(Latents(), rules, selection, name="latents")
    assert "no picture" in page
    assert "caption too short: 1" in page


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min_caption_words": 0}, "min_caption_words must be at least 1"),
        ({"min_side": 2.5}, "min_side must be a whole number"),
        ({"max_aspect": 0.5}, "max_aspect must be at least 1"),
        ({"similarity": 1}, "similarity must be in"),
        (
            {"min_caption_words": 9, "max_caption_words": 3},
            r"caption_words must have a least value up to the most, got \[9, 3\]",
        ),
        ({"scores": {"a": [2, 1]}}, r"scores.a must have .* got \[2.0, 1.0\]"),
        ({"scores": {"a": [None, None]}}, "scores.a must have a bound"),
        ({"scores": {"a": 2}}, "scores.a must be a list of 2"),
        ({"scores": {"a": [float("nan"), None]}}, "scores"),
        ({"deny": ["?!"]}, r"deny must hold words with a letter or a digit, got '\?!'"),
        ({"deny": "gun"}, r"deny must be a list, got 'gun'; write \['gun'\]"),
        ({"deny_columns": ["tags"]}, "deny_columns must come with filters.deny"),
        ({"embedding_column": "sscd"}, "must come with filters.near_duplicates"),
        ({"licence": ["cc0"]}, "did you mean filters.licences"),
    ],
)
def test_wrong_rules_are_refused(rules, message):
    with pytest.raises(UserError, match=message):
        filters(**rules)


def test_a_wrong_file_of_words_is_refused(tmp_path):
    source = Records([entry()])
    latin, empty = tmp_path / "latin", tmp_path / "empty"
    latin.write_bytes("déjà".encode("latin-1"))
    empty.write_text("# nothing\n")
    with pytest.raises(MissingFileError, match="deny_file must be a text file"):
        select(source, filters(deny_file=str(tmp_path / "none")))
    with pytest.raises(MissingFileError, match="text file, got .*, a folder; correct"):
        select(source, filters(deny_file=str(tmp_path)))
    with pytest.raises(UserError, match="UTF-8.*at byte 1"):
        select(source, filters(deny_file=str(latin)))
    with pytest.raises(UserError, match="must hold a word"):
        select(source, filters(deny_file=str(empty)))


@pytest.fixture(scope="module")
def drawings():
    """Emoji on white, by character."""
    canvases = {}
    for character in "🐵🐶🐱🦊🐸🚗🚕🚒🍎🍋🌲🌻":
        canvas = make_canvas(160, "white")
        paste(canvas, render_emoji(character, 144), top=8, left=8)
        canvases[character] = canvas
    return canvases


def resized(image, factor):
    size = [round(side * factor) for side in image.shape[1::-1]]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def recompressed(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return decode_picture(buffer.getvalue(), name="a.jpg")


def recoloured(image):
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 0] += np.uint8(90)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


COPIES = {
    "half": lambda image: resized(image, 0.5),
    "squashed": lambda image: np.ascontiguousarray(resized(image, 0.8)[::2]),
    "jpeg": lambda image: recompressed(image, 30),
    "small jpeg": lambda image: recompressed(resized(image, 0.6), 40),
    "cropped": lambda image: image[5:-5, 5:-5],
    "cropped at a side": lambda image: image[:, 8:],
}


def test_planted_near_duplicates_go_and_other_drawings_stay(drawings):
    images = dict(drawings)
    for name, copy in COPIES.items():
        images |= {f"{c} {name}": copy(image) for c, image in drawings.items()}
    images |= {f"{c} recoloured": recoloured(im) for c, im in drawings.items()}
    images |= {
        f"{c} mirrored": im[:, ::-1] for c, im in drawings.items() if c in "🐸🚗"
    }
    keys = list(images)
    order = np.random.default_rng(0).permutation(len(keys))
    source = named({keys[i]: images[keys[i]] for i in order})
    selection = select(source, filters(near_duplicates=True))
    for removed in selection.removed:
        first = source.entry(removed.duplicate_of).key
        assert removed.key[0] == first[0]
        assert "recoloured" not in removed.key + first
        assert removed.duplicate_of < removed.index
        assert removed.duplicate_of in selection.kept
    kept = [source.entry(index).key for index in selection.kept]
    planted = [key for key in kept if "recoloured" not in key and "mirrored" not in key]
    assert sorted(key[0] for key in planted) == sorted(drawings)
    assert sum("recoloured" in key for key in kept) == len(drawings)
    assert "🚗 mirrored" in kept


def test_pictures_may_be_looked_at_by_anybody(drawings):
    images = {c: drawings[c] for c in "🐸🚗🍎"}
    images |= {f"{c} again": resized(image, 0.5) for c, image in images.items()}
    source, rules = named(images), filters(near_duplicates=True, exact_duplicates=True)
    seen = []
    alone = select(source, rules, progress=lambda *counts: seen.append(counts))
    with multiprocessing.pool.ThreadPool(3) as pool:
        together = select(
            source,
            rules,
            look_at=lambda indices: pool.imap(
                lambda index: pictures.look(source, index, rules), indices
            ),
        )
    assert alone.removed == together.removed
    assert len(alone.removed) == 3
    np.testing.assert_array_equal(alone.kept, together.kept)
    np.testing.assert_array_equal(alone.sizes, together.sizes)
    assert seen == [(done, 6) for done in range(1, 7)]


def test_embeddings_of_a_column_decide_alone():
    vectors = [[1, 0], [0.99, 0.1], [0, 1], None, [0, 0], [1, 2, 3], np.array([0, 2.0])]
    records = [
        entry(key=str(i), columns={"sscd": vector}) for i, vector in enumerate(vectors)
    ]
    rules = filters(near_duplicates=True, embedding_column="sscd", similarity=0.95)
    selection = select(Records(records), rules)
    assert selection.kept.tolist() == [0, 2]
    assert selection.sizes is None
    assert [(r.key, r.reason, r.duplicate_of) for r in selection.removed] == [
        ("3", "sscd missing", None),
        ("4", "sscd missing", None),
        ("5", "sscd of another length", None),
        ("1", "near-duplicate", 0),
        ("6", "near-duplicate", 2),
    ]
    assert (
        selection.removed[3].detail == "similarity 0.995"
    )  # 0.99 / sqrt(0.99^2 + 0.1^2)


@pytest.fixture(scope="module")
def vectors():
    """Descriptors around 300 centres, some close together."""
    rng = np.random.default_rng(0)
    spread = 0.4 * rng.random((3000, 1))
    around = rng.normal(size=(300, 48))[rng.integers(300, size=3000)]
    noisy = around + spread * rng.normal(size=around.shape)
    return np.stack([normalise(each) for each in noisy])


@pytest.fixture(scope="module")
def of_all_pairs(vectors):
    """Rows and products by a search of all pairs, in whole numbers."""
    kept, of = [], []
    for row, vector in enumerate(vectors.astype(np.int64)):
        products = vectors[kept].astype(np.int64) @ vector
        best = int(np.argmax(products)) if kept else -1
        if kept and products[best] >= 0.9 * LENGTH**2:
            of.append(kept[best])
        else:
            of.append(-1)
            kept.append(row)
    return np.array(of)


@pytest.mark.parametrize(("cluster_size", "threads"), [(3000, 2), (500, 2), (60, 1)])
def test_clusters_find_what_all_pairs_give(
    vectors, of_all_pairs, cluster_size, threads
):
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    repeated = find_repeated(vectors, 0.9, cluster_size=cluster_size)
    faiss.omp_set_num_threads(before)
    assert 100 < np.sum(of_all_pairs >= 0) < 2900
    np.testing.assert_array_equal(repeated.of, of_all_pairs)
    goes = np.flatnonzero(repeated.of >= 0)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = np.sum(unit[goes] * unit[repeated.of[goes]], axis=1)
    np.testing.assert_allclose(repeated.similarity[goes], cosines, atol=1e-3)
    other = find_repeated(vectors, 0.95, cluster_size=cluster_size)
    assert np.sum(other.of >= 0) < len(goes)


def test_only_those_confirmed_repeat_another():
    vector = normalise([1, 2, 3])
    asked = []

    def is_same(row, earlier):
        asked.append((row, earlier))
        return row == 3

    repeated = find_repeated(np.stack([vector] * 4), 0.9, is_same=is_same)
    assert repeated.of.tolist() == [-1, -1, -1, 0]
    assert asked == [(1, 0), (2, 0), (2, 1), (3, 0)]


def test_descriptors_have_one_length_and_survive_pictures_of_one_colour():
    rng = np.random.default_rng(1)
    flat = [np.full((9, 30, 3), level, np.uint8) for level in (0, 90, 255)]
    noise = [rng.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(3)]
    described = np.stack([describe(thumbnail(each)) for each in flat + noise])
    lengths = np.linalg.norm(described.astype(float), axis=1)
    np.testing.assert_allclose(lengths, LENGTH, rtol=1e-3)
    assert (
        np.abs(described.astype(np.int64) @ described.T.astype(np.int64)).max() < 2**24
    )
    red, blue = np.zeros((2, 8, 8, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    cosine = describe(thumbnail(red)).astype(float) @ describe(thumbnail(blue))
    assert cosine < 0


def test_the_difference_is_that_of_the_worst_tile():
    """Against SciPy's Gaussian filter and tiles cut one by one."""
    rng = np.random.default_rng(2)
    smooth = scipy.ndimage.gaussian_filter(
        rng.normal(size=(2, 64, 64, 3)), (0, 4, 4, 0)
    )
    first, second = np.uint8(np.clip(128 + 500 * smooth, 0, 255))

    def tiles(image):
        blurred = scipy.ndimage.gaussian_filter(
            image / 255, (1, 1, 0), mode="nearest", radius=4
        )
        return [
            blurred[y : y + 8, x : x + 8]
            for y in range(0, 64, 8)
            for x in range(0, 64, 8)
        ]

    pairs = list(zip(tiles(first), tiles(second), strict=True))
    worst = max(np.sqrt(np.mean((a - b) ** 2)) for a, b in pairs)
    contrast = max(
        np.sqrt(np.mean(tile.var(axis=(0, 1)))) for pair in pairs for tile in pair
    )
    found = difference(first, second, enough=np.inf)
    np.testing.assert_allclose(found, worst / max(contrast, 0.15), rtol=1e-9)
    assert difference(first, first) == 0
    # Cropped: laid on one another they agree, as they are they do not.
    large = Image.fromarray(first).resize((512, 512), Image.Resampling.BICUBIC)
    cropped = thumbnail(np.asarray(large)[20:-10, 16:-16])
    assert difference(first, cropped, enough=np.inf) > 0.5
    assert difference(first, cropped) < 0.15
    assert difference(first, second) > 0.5


@pytest.mark.skipif(not CLIPART.is_dir(), reason="needs Debian's openclipart-svg")
def test_a_series_of_clip_art_collapses_and_other_drawings_stay():
    from rfjax.data.sources.svg import draw_svg, lay_on

    stars = sorted((CLIPART / "shapes" / "stars").glob("star_*step.svg"))[::45]
    names = (
        "canada_ontario canada_manitoba cook_islands newzealand germany jordan "
        "palestine samoa france_auvergne belgium_walloon"
    ).split()
    found = {
        path.stem: path
        for path in (CLIPART / "signs_and_symbols" / "flags").rglob("*.svg")
    }
    others = [found[name] for name in names if name in found]
    assert len(stars) > 20
    assert len(others) >= 6
    source = named(
        {
            path.stem: lay_on(
                draw_svg(path, size=128, name=path.stem), (255, 255, 255), margin=0
            )
            for path in [*stars, *others]
        }
    )
    kept = select(source, filters(near_duplicates=True)).kept
    assert np.sum(kept < len(stars)) <= 0.5 * len(stars)
    assert np.sum(kept >= len(stars)) == len(others)


class Page(html.parser.HTMLParser):
    """Tags that are open, texts, and what the page refers to."""

    VOID = ("meta", "img", "br")
    OPTIONAL = ("html", "td", "th", "tr", "li")

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.links, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href")]
        if tag not in self.VOID + self.OPTIONAL:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.OPTIONAL:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_shows_what_went_and_why(drawings):
    frog, car = drawings["🐸"], drawings["🚗"]
    evil = "<script>alert('x')</script> & more"
    records = [
        entry("a frog", key="frog.png", licence="CC0"),
        entry(evil, key="<b>.png", licence="CC-BY"),
        entry("a car", key="car.png", licence="CC0"),
        entry("broken", key="broken.png", licence="CC0"),
        *(entry("gun", key=f"{i}.png", licence="CC0") for i in range(30)),
    ]
    images = [frog, resized(frog, 0.5), car, b"no picture", *[car] * 30]
    source = Records(records, images)
    rules = filters(deny=["gun"], near_duplicates=True)
    selection = select(source, rules)
    extras = {
        "splits": {"train": 1, "validation": 1},
        "buckets": {"64 x 64": 2},
    }
    page = report_page(source, rules, selection, name="clip & art", **extras)
    again = report_page(source, rules, selection, name="clip & art", **extras)
    assert page == again
    late = [("<i>.png", "cut off")]
    page = with_notes(page, ["3 captions were cut to 12 tokens."], late)
    read = Page(page)
    assert not read.open
    assert "script" not in read.tags
    assert "<script" not in page
    text = " ".join(" ".join(read.texts).split())
    for expected in (
        "2 of 34 records stay", "denied word: 30", "near-duplicate: 1", evil, "<b>.png",
        "broken picture: 1", "broken.png", "3 captions were cut", "64 x 64",
        "<i>.png: cut off",
        "clip & art", "Licences CC0 2", "stays: a frog",
    ):  # fmt: skip
        assert expected in text, expected
    data = [link for link in read.links if not link.startswith("#")]
    assert {f"#{name}" for name in re.findall("id='([^']*)'", page)} == {
        link for link in read.links if link.startswith("#")
    }
    assert len(data) == 12 + 2  # examples of a reason; a pair; none of the broken one
    for link in data:
        picture = Image.open(io.BytesIO(base64.b64decode(link.split("base64,")[1])))
        assert picture.format == "JPEG"
        assert max(picture.size) <= 128
    nothing = report_page(
        source, FilterConfig(), select(source, FilterConfig()), name="a"
    )
    assert "34 of 34 records stay" in nothing
    assert "No filter is set" in nothing


def test_without_faiss_the_filter_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    rules = filters(near_duplicates=True)
    with pytest.raises(ImportError, match="faiss must .* filters.near_dup.*encode"):
        select(named({"one": np.zeros((64, 64, 3), np.uint8)}), rules)
