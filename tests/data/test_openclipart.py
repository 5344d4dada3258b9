# SPDX-License-Identifier: Apache-2.0
"""SVG drawings to pixels, and Open Clip Art's metadata to captions."""

import dataclasses
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rfjax.data.sources.main_colour import COLOUR_WORDS, main_colour
from rfjax.data.sources.openclipart import (
    FOLDER,
    Metadata,
    OpenClipartConfig,
    read_metadata,
)
from rfjax.data.sources.openclipart_captions import captions_of
from rfjax.data.sources.openclipart_titles import repair, says_nothing, subject_of
from rfjax.data.sources.pictures import BrokenPicture
from rfjax.data.sources.svg import draw_svg, lay_on
from rfjax.errors import UserError

SHAPE = '<rect x="20" y="30" width="40" height="10" fill="#c00000"/>'


def svg(body=SHAPE, size='width="100" height="80"'):
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{body}</svg>'


def draw(tmp_path, text, **kwargs):
    path = tmp_path / "drawing.svg"
    path.write_text(text)
    return draw_svg(path, **{"size": 64, "name": "drawing"} | kwargs)


# -- Drawings -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [
        'width="100" height="80"',
        'viewBox="0 0 100 80"',
        'width="80mm" height="100mm"',
        'width="400pt" height="300pt"',
        'width="100%" height="100%" viewBox="0 0 100 80"',
        'width="100%" height="100%"',
        'width="300" height="400"',
        "",
    ],
)
def test_a_drawing_is_cut_to_what_it_shows_whatever_its_page(tmp_path, size):
    drawing = draw(tmp_path, svg(size=size))
    height, width = drawing.shape[:2]
    # 40 by 10 units, and pixels of the edge that are partly covered
    assert width / height == pytest.approx(4, rel=0.15)
    assert 0.25 * 64**2 < height * width < 2.2 * 64**2
    middle = drawing[height // 2, width // 2]
    np.testing.assert_array_equal(middle, [0xC0, 0, 0, 255])
    assert (drawing[1:-1, 1:-1] == middle).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "whole SVG file"),
        ("hello", "whole SVG file"),
        (svg()[:-8], "whole SVG file"),
        (svg(size='width="0" height="10"'), "whole SVG file"),
        ("<svg/>", "draws nothing"),
        (svg(""), "draws nothing"),
        (svg('<rect x="900" width="9" height="9"/>'), "draws nothing"),
        (svg("<text x='9' y='30'>fonts differ</text>"), "draws nothing"),
    ],
)
def test_a_file_that_draws_nothing_is_a_broken_picture(tmp_path, text, message):
    with pytest.raises(BrokenPicture, match=rf"picture drawing must .*{message}"):
        draw(tmp_path, text)


def test_a_missing_file_is_a_broken_picture(tmp_path):
    with pytest.raises(BrokenPicture, match="picture drawing"):
        draw_svg(tmp_path / "none.svg", size=64, name="drawing")


def test_no_drawing_needs_a_large_canvas(tmp_path):
    line = svg('<rect width="1" height="9000000"/>', 'width="1" height="9000000"')
    assert draw(tmp_path, line).size < 4096**2
    speck = '<rect x="50" y="50" width="1" height="1"/>'
    assert draw(tmp_path, svg(speck, 'width="1000" height="1000"')).shape[0] < 99


def test_a_drawing_is_laid_on_a_background():
    drawing = np.zeros((2, 3, 4), np.uint8)
    drawing[0, 0] = (10, 20, 30, 255)
    drawing[1, 2] = (100, 100, 100, 128)
    picture = lay_on(drawing, (200, 0, 0), margin=1)
    expected = np.full((4, 5, 3), (200, 0, 0), np.uint8)
    expected[1, 1] = (10, 20, 30)
    expected[2, 3] = np.rint(np.array([100] * 3) * 128 / 255 + [200 * 127 / 255, 0, 0])
    np.testing.assert_allclose(picture.astype(int), expected, atol=1)


# -- Colours ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("colour", "word"),
    [
        ((255, 0, 0), "red"),
        ((180, 20, 30), "red"),
        ((255, 140, 0), "orange"),
        ((255, 230, 0), "yellow"),
        ((20, 160, 40), "green"),
        ((150, 200, 60), "green"),
        ((30, 60, 200), "blue"),
        ((100, 200, 255), "blue"),
        ((130, 30, 200), "purple"),
        ((255, 170, 190), "pink"),
        ((120, 70, 20), "brown"),
        ((240, 210, 170), "beige"),
        ((0, 0, 0), "black"),
        ((130, 130, 130), "grey"),
        ((255, 255, 255), "white"),
    ],
)
def test_a_colour_has_its_name(colour, word):
    drawing = np.full((20, 20, 4), 255, np.uint8)
    drawing[..., :3] = colour
    assert main_colour(drawing) == word
    # an outline, a highlight and a transparent frame do not change it
    if word not in ("black", "grey", "white"):
        drawing[:3, :, :3] = 0
        drawing[8:10, 8:14, :3] = 255
        drawing[-4:, :, 3] = 0
        assert main_colour(drawing) == word


def test_a_drawing_of_several_colours_has_no_colour_word():
    drawing = np.full((20, 20, 4), 255, np.uint8)
    drawing[:10, :, :3], drawing[10:, :, :3] = (255, 0, 0), (0, 0, 255)
    assert main_colour(drawing) == ""
    drawing[:15, :, :3] = (255, 0, 0)
    assert main_colour(drawing) == "red"
    assert main_colour(np.zeros((4, 4, 4), np.uint8)) == ""


def test_lines_are_black_and_white_but_silhouettes_are_black():
    drawing = np.zeros((20, 20, 4), np.uint8)
    drawing[::10, :, 3] = 255
    assert main_colour(drawing) == "black and white"
    drawing[:12, :, 3] = 255
    assert main_colour(drawing) == "black"


# -- Words --------------------------------------------------------------------------

ROLLANDIN = "Architetto Francesco Rollandin"


@pytest.mark.parametrize(
    ("path", "title", "creator", "subject"),
    [
        ("animals/birds/cigno_architetto_frances_01", "Cigno", ROLLANDIN, "swan"),
        ("animals/architetto_francesco_ro_01", ROLLANDIN, ROLLANDIN, "architect"),
        ("animals/rana01_architetto_france_01", "Rana01", ROLLANDIN, "frog"),
        ("animals/bugs/bee3_mimooh_01", "bee3", "mimooh", "bee"),
        ("animals/lizard_guillaume_boitel_", "L&Atilde;&copy;zard", "G B", "lizard"),
        ("animals/fish/bluewhale-md", "", "", "bluewhale"),
        ("animals/mammals/contour_fox", "Clipart by N - x", "N", "fox silhouette"),
        ("buildings/homes/home12", "Homes Clipart", "AbiClipart", "house"),
        ("computer/icons/lemon-theme/apps/clock", "Lemon SVG theme", "", "clock icon"),
        (
            "computer/icons/flat-theme/action/spell_selected",
            "Part of the Flat Icon Collection (Wed Aug 25 23:29:46 2004)",
            "Danny Allen",
            "spell icon",
        ),
        ("food/croissant_b_amp", "Croissant (B &amp; W)", "", None),
        ("recreation/games/cards/white/white_h_10", "card", "", "10 of hearts card"),
        ("recreation/games/cards/bordered/bordered_d_k", "card", "", "king of "
         "diamonds card"),
        ("shapes/stars/star_92pt15step", "gramastar", "codifiedivining", "star"),
        ("signs/map_symbols/aiga_bus1", "AIGA_Symbol_Signs", "", "bus sign"),
        ("signs/flags/europe/malta", " malta", "", "flag of malta"),
        ("signs/flags/america/usa_ohio", "Clipart by X - y", "", "flag of ohio"),
        ("transportation/roadsigns/tunnel", "SVG Road Signs", "", "tunnel road sign"),
        ("unsorted/motosega", "Various Cliparts", "", "chainsaw"),
        ("people/2_men_peter_m_01", "Untitled document", "Peter M", "2 men"),
    ],
)  # fmt: skip
def test_a_subject_is_read_off_title_or_file_name(path, title, creator, subject):
    subject = subject or "black and white croissant"
    assert subject_of(path, title, creator, ()) == subject


def test_a_place_is_a_map_where_the_keywords_say_so():
    assert subject_of("geography/peru_01", "Peru", "", ("map",)) == "map of peru"
    assert subject_of("geography/peru_01", "Peru", "", ()) == "peru"


def test_text_is_repaired_and_else_left_alone():
    assert repair("B &amp;amp; W &#39;") == "B & W '"
    assert repair("LÃ©zard") == repair("Lézard") == "Lézard"
    assert repair("日本") == "日本"


@pytest.mark.parametrize("title", ["", " ", "Untitled", "Card", "me@there.org", "x y"])
def test_titles_that_say_nothing(title):
    assert says_nothing(title, "X Y")
    assert not says_nothing(f"red {title} card holder", "X Y")


@pytest.mark.parametrize(
    ("subject", "colour", "places", "captions"),
    [
        ("car", "red", "", ("red car", "red car")),
        ("skoda car", "red", "car transport", ("red car", "red skoda car")),
        ("toyota land cruiser x", "red", "jeep", ("red car", "red car, toyota land "
         "cruiser x")),
        ("emperor penguin", "", "birds", ("penguin", "emperor penguin, bird")),
        ("purple hat", "red", "hats", ("purple hat", "purple hat")),
        ("arrow down purple", "blue", "", ("purple arrow down", "purple arrow down")),
        ("owl on branch", "brown", "birds", ("brown owl", "brown owl on branch, bird")),
        ("fox silhouette", "black", "", ("black fox", "black fox silhouette")),
        ("flag of malta", "red", "flags", ("red flag of malta", "red flag of malta")),
        ("hot dog", "brown", "food", ("brown hot dog", "brown hot dog, food")),
        ("red and white ball", "red", "", ("red", "red and white ball")),
        ("airbrush", "", "office", ("airbrush", "airbrush, office")),
        ("tempus fugit", "grey", "robot horse", ("grey horse", "grey horse, tempus "
         "fugit, robot")),
        ("black and white pie", "", "", ("black and white pie",) * 2),
    ],
)  # fmt: skip
def test_captions_say_colour_noun_and_kinds(subject, colour, places, captions):
    keywords = places.split()
    assert captions_of(subject, colour, folders=(), keywords=keywords) == captions
    assert captions_of(subject, colour, folders=keywords, keywords=()) == captions


# -- The source ---------------------------------------------------------------------

RDF = """<metadata><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:cc="http://web.resource.org/cc/">
<cc:Work rdf:about=""><dc:title>Fire &amp;amp; car</dc:title><dc:description/>
<dc:subject><rdf:Bag><rdf:li/><rdf:li>vehicle</rdf:li><rdf:li> HASH(0x8a) </rdf:li>
<rdf:li>car</rdf:li></rdf:Bag></dc:subject>
<dc:creator><cc:Agent><dc:title>Ann Lee</dc:title></cc:Agent></dc:creator>
<cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/></cc:Work>
<cc:License rdf:about="http://web.resource.org/cc/PublicDomain"/></rdf:RDF></metadata>
"""


def test_metadata_are_read_even_if_the_drawing_is_broken(tmp_path):
    path = tmp_path / "a.svg"
    expected = Metadata(
        title="Fire &amp; car",
        creator="Ann Lee",
        licence="public domain",
        keywords=("vehicle", "car"),
    )
    for text in (svg(RDF + SHAPE), svg(RDF + SHAPE)[:-9]):
        path.write_text(text)
        assert read_metadata(path) == expected
    for text in ("", "no xml", svg()):
        path.write_text(text)
        assert read_metadata(path) == Metadata()
    for licence, name in (
        ("http://creativecommons.org/licenses/GPL/2.0/", "GPL 2.0"),
        ("http://creativecommons.org/licenses/publicdomain/", "public domain"),
        ("", ""),
    ):
        path.write_text(
            svg(RDF.replace("http://web.resource.org/cc/PublicDomain", licence))
        )
        assert read_metadata(path).licence == name


@pytest.fixture
def collection(tmp_path):
    """Three drawings, of which one is linked from a second folder, and a broken one."""
    for folder in ("animals/birds", "food", "transportation/vehicles"):
        (tmp_path / folder).mkdir(parents=True)
    round_ = '<circle cx="50" cy="40" r="20" fill="{}"/>'.format
    (tmp_path / "transportation/vehicles/fire_car_ann_lee_01.svg").write_text(
        svg(RDF + round_("red"))
    )
    (tmp_path / "animals/birds/duck_01.svg").write_text(svg(round_("yellow")))
    (tmp_path / "food/full.svg").write_text(
        svg('<rect width="100" height="80" fill="#00f"/>')
    )
    (tmp_path / "food/broken_pie.svg").write_text("<svg")
    (tmp_path / "food/duck_01.svg").symlink_to("../animals/birds/duck_01.svg")
    (tmp_path / "food/gone.svg").symlink_to("nowhere.svg")
    (tmp_path / "food/outside.svg").symlink_to("/etc/hostname")
    return tmp_path


def test_a_collection_is_listed_once_with_all_its_folders(collection):
    source = OpenClipartConfig(path=str(collection)).make()
    entries = {e.key: e for e in map(source.entry, range(len(source)))}
    assert list(entries) == sorted(entries)
    car = entries["transportation/vehicles/fire_car_ann_lee_01.svg"]
    assert car.captions == ("red car", "red fire car, vehicle")
    assert (car.split, car.licence, car.attribution) == (
        "validation",
        "public domain",
        "Ann Lee",
    )
    assert car.columns["keywords"] == ("vehicle", "car")
    duck = entries["animals/birds/duck_01.svg"]
    assert duck.captions == ("yellow duck", "yellow duck, bird, animal")
    assert duck.split == "train"
    assert duck.columns["folders"] == ("animals", "birds", "food")
    assert len(entries) == 4
    assert entries["food/broken_pie.svg"].captions == ("pie", "broken pie, food")


def test_a_drawing_has_a_margin_unless_it_fills_its_frame(collection):
    source = OpenClipartConfig(path=str(collection), image_size=32).make()
    pictures = {}
    for index in range(len(source)):
        name = Path(source.entry(index).key).stem
        if name == "broken_pie":
            with pytest.raises(BrokenPicture, match=r"food/broken_pie\.svg"):
                source.picture(index)
        else:
            pictures[name] = source.picture(index)
    assert (pictures["full"] == (0, 0, 255)).all()
    assert pictures["full"].shape[1] / pictures["full"].shape[0] == pytest.approx(
        1.25, rel=0.05
    )
    car = pictures["fire_car_ann_lee_01"]
    is_red = (car == (255, 0, 0)).all(axis=-1)
    rows = np.flatnonzero(is_red.any(axis=1))
    assert rows[0] == pytest.approx(len(car) - 1 - rows[-1], abs=1)
    assert 0.04 < rows[0] / len(car) < 0.08
    assert (car[0] == 255).all()
    assert 48**2 < car.shape[0] * car.shape[1] < 96**2


def test_captions_may_be_left_as_they_are_in_the_same_splits(collection):
    config = OpenClipartConfig(path=str(collection))
    clean, raw = config.make(), dataclasses.replace(config, clean_captions=False).make()
    assert clean.caption_kinds == ("short", "full")
    assert raw.caption_kinds == ("original",)
    for index in range(len(clean)):
        assert raw.entry(index).split == clean.entry(index).split
    captions = [raw.entry(index).captions for index in range(len(raw))]
    assert ("Fire &amp; car, vehicle, car",) in captions


def test_combinations_of_colour_and_noun_are_held_out_but_no_nouns(collection):
    for fraction, held_out in ((0.999, {"red car", "yellow duck"}), (0.001, set())):
        source = OpenClipartConfig(
            path=str(collection), held_out=(), validation_fraction=fraction
        ).make()
        entries = [source.entry(index) for index in range(len(source))]
        split = {e.captions[0]: e.split for e in entries}
        assert {c for c, name in split.items() if name == "validation"} >= held_out
        assert split["pie"] == "train"
        assert held_out or set(split.values()) == {"train"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "/nowhere"}, r"source\.path must .*apt-get install openclipart-svg"),
        ({"path": "https://openclipart.org"}, r"source\.path must be a path on this"),
        ({"path": ""}, r"source\.path must not be empty"),
        ({"background": "plaid"}, r"source\.background must be one of"),
        ({"validation_fraction": 0.0}, r"source\.validation_fraction must be in \(0"),
        ({"held_out": ("",)}, r"source\.held_out.* must not be empty"),
        ({"image_size": 0}, r"source\.image_size must be between 1 and 8192"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        OpenClipartConfig(**fields).make()


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.isdir(FOLDER), reason="the package openclipart-svg is not installed"
)
def test_the_real_collection_keeps_its_promises():
    source = OpenClipartConfig(image_size=8).make()
    assert len(source) == 7458
    entries = [source.entry(index) for index in range(0, len(source), 16)]
    splits = {s: [e for e in entries if e.split == s] for s in ("train", "validation")}
    held_out = {e.captions[0] for e in splits["validation"]}
    assert all(caption.split()[0] in COLOUR_WORDS for caption in held_out)
    for kind in range(2):
        seen = {s: {e.captions[kind] for e in es} for s, es in splits.items()}
        assert not seen["train"] & seen["validation"]
    licences = Counter(entry.licence for entry in entries)
    assert licences["public domain"] > 0.97 * len(entries)
    assert all(caption for entry in entries for caption in entry.captions)
