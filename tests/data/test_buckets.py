# SPDX-License-Identifier: Apache-2.0
"""The table of bucket sizes against published ones; fitting against two plain steps."""

import math
import random

import numpy as np
import pytest
from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as pixart
from PIL import Image

from rfjax.data.buckets import BucketConfig, bucket_sizes, fit, nearest_bucket
from rfjax.errors import UserError


@pytest.mark.parametrize(
    ("image_size", "multiple", "published"),
    [
        (1024, 64, pixart.ASPECT_RATIO_1024_BIN),
        (512, 32, pixart.ASPECT_RATIO_512_BIN),
        (256, 16, pixart.ASPECT_RATIO_256_BIN),
    ],
)
def test_sizes_are_published_ones(image_size, multiple, published):
    sizes = bucket_sizes(image_size, multiple=multiple, max_aspect=4)
    assert len(sizes) == 17
    known = {(int(height), int(width)) for height, width in published.values()}
    # 9 by 28 is there in one of its two directions only.
    assert set(sizes) - known == {(28 * multiple, 9 * multiple)}
    assert (image_size, image_size) in sizes


@pytest.mark.parametrize("image_size", [64, 240, 256, 512])
@pytest.mark.parametrize("multiple", [8, 16])
@pytest.mark.parametrize("max_aspect", [1.3, 2, 4])
def test_sizes_are_what_they_must_be(image_size, multiple, max_aspect):
    sizes = bucket_sizes(image_size, multiple=multiple, max_aspect=max_aspect)
    for height, width in sizes:
        assert height % multiple == width % multiple == 0
        short, long = sorted((height, width))
        assert long / short <= max_aspect
        assert height * width <= image_size**2  # and one step more would exceed it:
        assert height == width or short * (long + multiple) > image_size**2
        assert (width, height) in sizes
    assert list(sizes) == sorted(set(sizes))
    shorts = {
        short
        for short in range(1, image_size)
        if short % multiple == 0
        and math.floor(image_size**2 / short / multiple) * multiple / short
        <= max_aspect
    }
    assert len(sizes) == 1 + 2 * len(shorts)


def test_the_nearest_in_the_logarithm():
    sizes = bucket_sizes(64, multiple=16, max_aspect=4)
    drawn = random.Random(0)
    plain = 0
    for _ in range(500):
        height, width = drawn.randint(1, 3000), drawn.randint(1, 3000)
        distances = [abs(math.log(height / width) - math.log(h / w)) for h, w in sizes]
        chosen = sizes.index(nearest_bucket(height, width, sizes))
        assert distances[chosen] == pytest.approx(min(distances), abs=1e-12)
        differences = [abs(height / width - h / w) for h, w in sizes]
        plain += chosen != differences.index(min(differences))
    assert plain > 10  # the nearest ratio itself is often another
    assert nearest_bucket(10, 5000, sizes) == sizes[0]


@pytest.mark.parametrize(
    ("shape", "size", "kept"),
    [
        ((60, 40), (30, 16), (0, 4, 60, 32)),  # too wide: columns go
        ((60, 40), (24, 20), (6, 0, 48, 40)),  # too tall: rows go
        ((30, 40), (60, 80), (0, 0, 30, 40)),  # the same shape
        ((20, 21), (40, 40), (0, 0.5, 20, 20)),  # half a pixel on both sides
    ],
)
def test_fit_resizes_to_cover_and_crops_the_centre(shape, size, kept):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(image).resize(shape[::-1], box=(3, 3, 9, 9)))
    fitted, crop = fit(image, size)
    assert tuple(crop) == kept
    assert fitted.shape == (*size, 3)
    assert fitted.dtype == np.uint8
    scale = max(size[0] / shape[0], size[1] / shape[1])
    height, width = (round(side * scale) for side in shape)
    covering = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    top, left = (height - size[0]) / 2, (width - size[1]) / 2
    cropped = np.asarray(covering)[int(top) :, int(left) :][: size[0], : size[1]]
    np.testing.assert_allclose(fitted, cropped, atol=1)
    assert np.abs(fitted.astype(int) - cropped[::-1]).max() > 20


def test_fit_does_not_alias_and_leaves_what_fits():
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    board = np.repeat(board[..., None], 3, axis=-1).astype(np.uint8)
    assert np.ptp(board[::4, ::4].astype(int)) == 0  # each fourth pixel: black alone
    fitted, _ = fit(board, (16, 16))
    np.testing.assert_allclose(fitted, 127.5, atol=12)
    same, crop = fit(board, (64, 64))
    np.testing.assert_array_equal(same, board)
    assert tuple(crop) == (0, 0, 64, 64)


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (7, 3), (333, 77)])
def test_fit_takes_any_shape(shape):
    image = np.full((*shape, 3), 200, np.uint8)
    for size in bucket_sizes(64, multiple=8, max_aspect=4):
        fitted, crop = fit(image, size)
        assert (fitted == 200).all()
        assert fitted.shape == (*size, 3)
        assert crop.height / crop.width == pytest.approx(size[0] / size[1])
        assert 0 <= crop.top <= crop.top + crop.height <= shape[0]
        assert 0 <= crop.left <= crop.left + crop.width <= shape[1]


def test_the_section_is_off_by_default():
    assert BucketConfig().sizes(50) == ((50, 50),)  # 16 does not divide it
    sizes = BucketConfig(max_aspect=2.0, multiple=8).sizes(64)
    assert sizes == bucket_sizes(64, multiple=8, max_aspect=2)
    assert len(sizes) == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_aspect": 0.5}, r"buckets.max_aspect must be between 1 and 16, got 0.5"),
        ({"max_aspect": math.nan}, r"buckets.max_aspect must be between 1 and 16"),
        ({"multiple": 0}, r"buckets.multiple must be at least 1, got 0"),
        (
            {"max_aspect": 2.0, "multiple": 24},
            r"buckets.multiple must divide source.image_size 64, got 24; choose an "
            r"image size of 48 pixels",
        ),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(UserError, match=message):
        BucketConfig(**fields).sizes(64)
