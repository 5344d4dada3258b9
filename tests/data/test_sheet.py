# SPDX-License-Identifier: Apache-2.0
"""Contact sheets."""

import numpy as np

from rfjax.data.sheet import Section, draw_sheet


def test_pictures_are_drawn_unchanged_and_in_order():
    colours = np.array([(200, 0, 0), (0, 200, 0), (0, 0, 200)], np.uint8)
    images = np.broadcast_to(colours[:, None, None], (3, 8, 8, 3))
    section = Section("train", images, ["red", "green", "blue"])
    sheet = np.asarray(draw_sheet([section], title="T", columns=2, picture_size=64))
    places = [np.argwhere((sheet == colour).all(axis=-1)) for colour in colours]
    assert [len(place) for place in places] == [64 * 64] * 3
    red, green, blue = (place.min(axis=0) for place in places)
    assert red[0] == green[0] < blue[0]
    assert red[1] == blue[1] < green[1]


def test_long_captions_make_room():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    short = draw_sheet([Section("a", images, ["x", "y"])], title="T")
    long = draw_sheet([Section("a", images, ["x", "many words " * 9])], title="T")
    footed = draw_sheet([Section("a", images, ["x", "y"])], title="T", footer="CC0")
    assert long.height > short.height
    assert footed.height > short.height
    assert long.width == short.width
